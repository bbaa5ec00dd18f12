"""A training process ends with its launcher or its work; one started by hand continues without its shell."""

import subprocess
import sys

import pytest

from llava.train import launcher

pytestmark = pytest.mark.slow

# A process that starts a child, which watches its parent, and then ends at once by SIGKILL
PARENT = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
CHILD = """
import os, sys, time
from llava.train import launcher
launcher.SECONDS_BETWEEN_LOOKS = 0.01
parent = os.getppid()
launcher.end_with_launcher()
print("ready", flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
time.sleep({rest})
print("went on", file=sys.stderr)
"""


def outlived(environment: dict[str, str], rest: float) -> str:
    """The output of a process whose parent was killed; after `rest` seconds it prints that it continued."""
    command = [sys.executable, "-c", PARENT, CHILD.format(rest=rest)]
    parent = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    return parent.stderr  # it was read to its end, so the child has ended too


@pytest.fixture
def environment(monkeypatch):
    for mark in launcher.MARKS:
        monkeypatch.delenv(mark, raising=False)
    return dict(launcher.os.environ)


@pytest.mark.parametrize("mark", launcher.MARKS)
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_rank_ends_with_its_launcher_and_one_rank_of_a_node_says_so(environment, mark, rank):
    written = outlived({**environment, mark: "1"} | ({"LOCAL_RANK": rank} if rank else {}), rest=600)
    assert "went on" not in written
    lines = written.splitlines()
    if rank == "1":
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith("train_mem.py: the launcher, process ")
        assert "has ended" in line


# torch.distributed's excepthook collects the output of the previous hook and writes it with the rank's number
WRAPPED = """
import io
before = sys.excepthook
def wrapping(*exception):
    real, sys.stderr = sys.stderr, io.StringIO()
    before(*exception)
    written, sys.stderr = sys.stderr.getvalue(), real
    sys.stderr.write(written)
sys.excepthook = wrapping
print("ready", flush=True)
"""


@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize("is_gone", [True, False])
def test_an_error_because_other_ranks_ended_is_no_traceback(environment, is_gone, is_wrapped):
    """Here the thread would check too late: the failure itself makes the rank check its launcher."""
    fails = CHILD.replace("LOOKS = 0.01", "LOOKS = 600").replace(
        "time.sleep({rest})", "raise RuntimeError('reset')"
    )
    if is_wrapped:
        fails = fails.replace('print("ready", flush=True)\n', WRAPPED)
    if not is_gone:
        fails = fails.replace("while os.getppid() == parent", "while False")
    command = [sys.executable, "-c", PARENT, fails] if is_gone else [sys.executable, "-c", fails]
    environment |= {launcher.MARKS[0]: "1"}
    written = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stderr
    assert ("Traceback" in written) is not is_gone
    assert ("train_mem.py: the launcher" in written) is is_gone


def test_a_process_started_by_hand_outlives_its_shell(environment):
    by_hand = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    assert outlived(environment | by_hand, rest=0.5).splitlines() == ["went on"]


RANK = """
import atexit, os, sys
from llava.train.launcher import run_rank

class Finalized:
    def __del__(self, write=os.write):
        write(2, b"finalized")

sys.kept = Finalized()
sys.kept.itself = sys.kept  # released by the interpreter's finalization alone
atexit.register(print, "at exit")

def work():
    print("worked")
    {end}

run_rank(work)
"""


@pytest.mark.parametrize("is_launched", [True, False])
@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        *[("pass", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(143)", 143, ""), ("sys.exit('bad')", 1, "bad")],
        ("sys.exit(OSError('bad'))", 1, "bad"),
        ("raise OSError('bad')", 1, "OSError: bad"),
    ],
)
def test_a_launched_rank_ends_ahead_of_finalization(environment, is_launched, end, status, said):
    """Status, output and exit handlers are like those of any program."""
    environment |= {launcher.MARKS[0]: "1"} if is_launched else {}
    command = [sys.executable, "-c", RANK.format(end=end)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (status, ["worked", "at exit"])
    assert said in done.stderr
    assert ("finalized" in done.stderr) is not is_launched
