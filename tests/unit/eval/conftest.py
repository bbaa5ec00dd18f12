"""Every benchmark in miniature, made and loaded by name."""

import benchmarks
import open_benchmarks
import pytest

from llava.eval.records import check_questions
from llava.eval.tasks import TASKS

BUILDERS = {**benchmarks.BUILDERS, **open_benchmarks.BUILDERS}


@pytest.fixture
def load(tmp_path):
    """From a task's name to its rows, its files made first."""

    def build_and_load(name: str) -> list[dict]:
        folder = BUILDERS[name](tmp_path)
        assert TASKS[name].missing(tmp_path) == []
        return check_questions(TASKS[name].load(folder), name)

    return build_and_load
