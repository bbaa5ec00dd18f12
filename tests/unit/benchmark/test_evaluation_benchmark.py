"""Evaluation at size: every step is measured, and twice as many questions need at most twice the calls."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from llava.benchmark import evaluation
from llava.benchmark.__main__ import main

SIZES = 60, 120


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of both sizes, with all prompt lengths stored."""
    made = []
    for num in SIZES:
        folder = tmp_path_factory.mktemp(str(num))
        evaluation.render(folder, num)
        evaluation.answer(folder, left=5)
        list(evaluation.planning(folder))
        made.append(folder)
    return made


def count_calls(name, folder) -> int:
    """Counts calls of functions, with Python's own, from the start of the step's clock."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    step = evaluation.STEPS[name](folder)
    next(step)
    sys.setprofile(count)
    try:
        list(step)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("name", evaluation.STEPS)
def test_twice_as_many_questions_are_at_most_twice_the_work(folders, name):
    count_calls(name, folders[0])  # only the first call imports modules and fills caches
    small, large = (count_calls(name, folder) for folder in folders)
    assert small < large <= 2.2 * small


def test_the_command_prints_a_row_for_each_step(capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", lambda num, mp_context: ThreadPoolExecutor(num))
    assert main(["eval", "--questions", "20", "--left", "3"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "| 20: s | 20: MiB | 40: s | 40: MiB |" in table[0]
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in evaluation.STEPS]
