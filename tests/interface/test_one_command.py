"""`visualprism COMMAND` runs the module's command, and a shell completes commands and flags."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
ASK = """
visualprism() {{ {python} -m llava "$@"; }}
eval "$(visualprism completion)"
COMP_WORDS=({words}) COMP_CWORD={last}
_visualprism
printf "%s\\n" "${{COMPREPLY[@]}}"
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["preflight", "export"])
def test_its_page_of_help_is_the_modules_own(name):
    command = COMMANDS[name]
    assert run("llava", name, "--help").stdout == run(command.module, *command.first, "--help").stdout != ""


def test_arguments_and_the_exit_status_are_handed_on():
    done = run("llava", "export", "a", "b", "--target", "nowhere")
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_every_command_is_a_module_that_runs():
    for command in COMMANDS.values():
        spec = importlib.util.find_spec(command.module)
        entry = (
            Path(spec.origin).with_name("__main__.py")
            if spec.submodule_search_locations
            else Path(spec.origin)
        )
        assert '__name__ == "__main__"' in entry.read_text(), command.module


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [("llava", "eval", "--list"), ("llava", "train", "--help"), ("llava.eval.run", "--list")],
    ids=" ".join,
)
def test_a_command_whose_reader_has_ended_ends_without_a_message(arguments, unbuffered):
    """As `visualprism eval --list | head` does once head has its lines."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_unknown_command_is_refused_with_those_there_are():
    done = run("llava", "finetune")
    assert done.returncode == 2
    assert all(name in done.stderr for name in (*COMMANDS, "finetune"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [(["ev"], ["eval"]), (["export", "--with"], ["--with_code"]), (["export", "playground/"], [""])],
)
def test_bash_completes_commands_and_flags(words, found):
    script = ASK.format(python=sys.executable, words=" ".join(["visualprism", *words]), last=len(words))
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == found, done.stderr
