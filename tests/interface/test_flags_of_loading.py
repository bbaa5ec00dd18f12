"""Every command of eval, serve and visualization that loads a model takes the flags of how it is loaded."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from llava.published import gone

ROOT = Path(__file__).parents[2]
GONE = {command.module for command in gone.COMMANDS}
COMMANDS = sorted(
    f"llava.{room}.{path.stem}"
    for room in ("eval", "serve", "visualization")
    for path in (ROOT / "llava" / room).glob("*.py")
    if '__name__ == "__main__"' in path.read_text() and f"llava.{room}.{path.stem}" not in GONE
)
FLAGS = {"--dtype", "--attn_implementation", "--attn-implementation", "--compile"}
WITHOUT = {"llava.visualization.prism": {"--compile"}}  # it runs the tower once, and the projector by parts


@pytest.fixture
def flags_of(capsys, monkeypatch):
    def ask(command: str) -> set[str]:
        monkeypatch.setattr(sys, "argv", [command, "--help"])
        monkeypatch.delitem(sys.modules, command, raising=False)
        with pytest.raises(SystemExit, match="0"):
            runpy.run_module(command, run_name="__main__")
        return set(re.findall(r"--[A-Za-z][\w-]*", capsys.readouterr().out))

    return ask


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_takes_a_model_takes_the_flags_of_its_loading(flags_of, command):
    flags = flags_of(command)
    if flags & {"--model-path", "--model_path"}:
        assert FLAGS & flags == FLAGS - WITHOUT.get(command, set())
    else:
        assert not FLAGS & flags


def test_there_are_such_commands_in_each_room(flags_of):
    assert {"llava.eval.run", "llava.eval.model_vqa", "llava.eval.run_llava"} <= set(COMMANDS)
    assert {"llava.serve.api", "llava.serve.cli", "llava.serve.web"} <= set(COMMANDS)
    assert {"llava.visualization.heatmap", "llava.visualization.prism"} <= set(COMMANDS)
    assert "--model-path" in flags_of("llava.eval.run")
