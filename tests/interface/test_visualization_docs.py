"""docs/visualization.md is right about commands and calls; commands are parsed before heavy imports."""

import importlib
import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "visualization.md").read_text(encoding="utf-8")
COMMANDS = {
    words[2]: words[3:]
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S)
    for words in [shlex.split(block.replace("\\\n", " "))]
}
COST = COMMANDS.pop("llava.benchmark")


def test_the_page_shows_every_picture():
    names = ("distribution", "heatmap", "prism")
    assert sorted(COMMANDS) == [f"llava.visualization.{name}" for name in names]


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_parse(module):
    args = importlib.import_module(module).parse_args(COMMANDS[module])
    assert (args.model_path, args.image_path) == ("MODEL", "photo.png")


def test_the_command_of_what_capturing_costs_parses():
    from llava.benchmark import capture

    parser = ArgumentParser()
    capture.add_arguments(parser)
    assert COST[0] == "capture"
    assert parser.parse_args(COST[1:]).image_file == "photo.png"
