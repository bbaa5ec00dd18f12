"""The type checker finds no error; pyproject.toml defines the files that it reads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_types_agree():
    pytest.importorskip("mypy", reason="mypy is not installed; pip install -e .[dev] brings it")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-color-output"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
