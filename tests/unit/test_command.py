"""How a command ends: one line for a mistake that a user can correct, the whole traceback for a bug."""

import ast
import re
from pathlib import Path

import pytest

from llava.command import exit_code, message
from llava.errors import UserError
from llava.train import train as training

ROOT = Path(__file__).parents[2]
CODE = [path for folder in ("llava", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


def fail(error: Exception):
    def action():
        raise error

    return action


def test_what_a_user_can_mend_is_one_line(capsys):
    assert exit_code(fail(UserError("--flag must be 1, got 2."))) == 1
    assert capsys.readouterr().err == "error: --flag must be 1, got 2.\n"


@pytest.mark.parametrize(
    "bug", [ValueError("too many values to unpack"), KeyError("y"), BrokenPipeError("a socket")]
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        exit_code(fail(bug))


def test_debugging_shows_where_a_users_mistake_was_found(monkeypatch):
    monkeypatch.setenv("LLAVA_DEBUG", "1")
    try:
        fail(UserError("wrong"))()
    except UserError as error:
        shown = message(error, "train_mem.py")
    assert shown.startswith("Traceback")
    assert shown.endswith("\ntrain_mem.py: wrong")


@pytest.mark.parametrize(
    ("error", "expected"), [(UserError("wrong"), SystemExit), (ValueError("bug"), ValueError)]
)
def test_training_tells_mistakes_from_bugs(monkeypatch, error, expected):
    monkeypatch.setattr(training, "prepare", lambda argv: fail(error)())
    with pytest.raises(expected):
        training.train([])


def test_no_message_has_us_installed_as_the_package_llava_of_the_index():
    """That one is another's; ours is visualprism, and an extra comes by pip install -e '.[serve]'."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "scripts").rglob("*.sh"), *CODE]
    wrong = re.compile(r"llava\[|pip3? install (-U |--upgrade )?llava")
    assert [path.name for path in texts if wrong.search(path.read_text(encoding="utf-8"))] == []
    assert 'name = "visualprism"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_errors_for_a_user_are_user_errors():
    for path in CODE:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "ValueError" in text else ():
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert getattr(node.exc.func, "id", "") != "ValueError", f"{path}:{node.lineno}"
