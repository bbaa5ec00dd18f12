"""Makes and loads a small form of each benchmark by its name."""

import benchmarks
import open_benchmarks
import pytest

from llava.eval.records import check_questions
from llava.eval.tasks import TASKS

BUILDERS = {**benchmarks.BUILDERS, **open_benchmarks.BUILDERS}


@pytest.fixture
def load(tmp_path):
    """Makes a task's files and returns its rows, given the task's name."""

    def build_and_load(name: str) -> list[dict]:
        folder = BUILDERS[name](tmp_path)
        assert TASKS[name].missing(tmp_path) == []
        return check_questions(TASKS[name].load(folder), name)

    return build_and_load
