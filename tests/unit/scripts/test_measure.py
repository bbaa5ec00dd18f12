"""measure.py: time, memory and exit code of a command."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MEASURE = Path(__file__).parents[3] / "scripts" / "measure.py"


def measure(log: Path, code: str) -> tuple[int, list[str]]:
    """Run Python `code` under measurement; returns (exit code, the line that was written)."""
    command = [sys.executable, MEASURE, "--name", "step", "--log", log, "--", sys.executable, "-c", code]
    done = subprocess.run(command, timeout=30, capture_output=True)
    return done.returncode, log.read_text().splitlines()[-1].split("\t")


def test_measure_logs_seconds_and_peak_and_passes_the_exit_code(tmp_path):
    code, (name, seconds, peak, logged) = measure(
        tmp_path / "times.tsv", "import sys, time; x = b'1' * (64 << 20); time.sleep(0.5); sys.exit(3)"
    )
    assert (code, name, logged) == (3, "step", "3")
    assert 0.5 <= float(seconds) < 20
    assert 64 <= float(peak) < 300


def test_measure_adds_up_a_process_and_its_children(tmp_path):
    child = "import time; x = b'1' * (100 << 20); time.sleep(1.5)"
    command = f"[sys.executable, '-c', {child!r}]"
    parent = f"import subprocess, sys; subprocess.Popen({command}); subprocess.run({command})"
    _, (_, _, peak, _) = measure(tmp_path / "times.tsv", parent)
    assert float(peak) >= 200


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_measure_reports_a_killed_command_as_a_shell_does(tmp_path):
    code, (*_, logged) = measure(tmp_path / "times.tsv", "import os; os.kill(os.getpid(), 9)")
    assert (code, logged) == (137, "137")
