"""run_stoppable of scripts/launch.sh: the exit code of every launcher, and a signal at every moment.

The launchers are stand-ins. A moment is a command of the shell: a DEBUG trap delays it, or sends a signal
before it. So nothing depends on the speed of the machine.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SHELL = """
source "$ROOT/scripts/launch.sh"
set -o functrace
eval "$DEBUG"
run_stoppable sh -c "$LAUNCHER"
"""
DELAYED = "trap 'sleep 0.05' DEBUG"
SIGNALLED = """number=0
trap '[[ ${FUNCNAME[0]:-} != run_stoppable ]] || ((++number != MOMENT)) || kill -s "$SIGNAL" $$' DEBUG"""


def start(launcher: str, debug: str = "", ignored: bool = False, **variables) -> subprocess.Popen:
    """A shell that runs `launcher`, a script of sh, under run_stoppable.

        Args:
    debug: the command that sets the shell's DEBUG trap.
    ignored: whether to start it as nohup does.
    """

    def set_signals():
        # a background job starts with SIGINT ignored, and bash cannot trap ignored signals
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    return subprocess.Popen(
        ["bash", "-c", SHELL],
        env={**os.environ, **variables, "ROOT": str(ROOT), "LAUNCHER": launcher, "DEBUG": debug},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=set_signals,
    )


@pytest.mark.parametrize("debug", ["", DELAYED], ids=["at once", "delayed"])
@pytest.mark.parametrize("code", [0, 1, 3, 127, 128, 130, 143, 255])
def test_a_launcher_that_ends_by_itself_keeps_its_exit_code(code, debug):
    assert start(f"exit {code}", debug).wait(timeout=120) == code


@pytest.mark.parametrize("debug", ["", DELAYED], ids=["at once", "delayed"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_launcher_that_a_signal_ended_has_the_code_of_a_shell(number, debug):
    assert start(f"kill -{int(number)} $$", debug).wait(timeout=120) == 128 + number


LOOP = "echo ready; while :; do sleep 0.02; done"


def without_processes(code: int) -> str:
    """A launcher that ends with `code` on SIGTERM."""
    lines = (
        "import signal",
        f"signal.signal(signal.SIGTERM, lambda *_: exit({code}))",
        "print('ready', flush=True)",
        "while True: signal.pause()",
    )
    return f'exec {sys.executable} -c "{chr(10).join(lines)}"'


def with_worker(code: int, rest: str) -> str:
    """A launcher whose training process saves after SIGTERM and ends with `code`."""
    return f"""sh -c 'trap "sleep 0.3; echo saved; exit {code}" TERM; {LOOP}' & {rest}"""


SAVES = with_worker(143, "wait; exit 1")
LAUNCHERS = {  # a launcher, the exit code after a signal, and the output
    "exits 0": (without_processes(0), 0, ""),
    "exits 7": (without_processes(7), 143, ""),
    "dies of it": ("echo ready; exec sleep 600", 143, ""),
    "ends after its processes, which save": (SAVES, 143, "saved\n"),
    "ends after its processes, which complete": (with_worker(0, "wait; exit 0"), 0, "saved\n"),
    "would kill its processes": (
        with_worker(143, "trap 'kill -KILL $!; exit 9' TERM; wait; exit 1"),
        143,
        "saved\n",
    ),
    "has helpers beside its processes": (
        with_worker(143, "while kill -0 $!; do sleep 0.02; done; exit 1"),
        143,
        "saved\n",
    ),
}


def catches(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_stops_every_launcher(launcher, sent):
    command, code, printed = LAUNCHERS[launcher]
    process = start(command)
    assert process.stdout.readline() == "ready\n"
    while not catches(process.pid, sent):
        time.sleep(0.01)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (code, printed)


def test_a_launcher_with_nothing_but_helpers_is_stopped_itself():
    process = start("trap 'exit 0' TERM; echo ready; while :; do sleep 0.5; done")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0


def test_a_launcher_that_ignores_the_signal_keeps_its_code():
    process = start('trap "" TERM; echo ready; sleep 1; echo went on')
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "went on\n")


@pytest.mark.parametrize("sent", ["TERM", "INT"])
@pytest.mark.parametrize("moment", range(1, 15))
def test_a_signal_is_lost_at_no_moment(moment, sent):
    """From the function's first command to its `wait`. The launcher ends too, because the output ends."""
    process = start("exec sleep 600", SIGNALLED, MOMENT=str(moment), SIGNAL=sent)
    process.communicate(timeout=120)
    assert process.returncode in (143, -getattr(signal, f"SIG{sent}"))


def test_a_launcher_that_has_not_reached_its_exec_is_stopped_after_it(tmp_path):
    """Between fork and exec, the shell's handler would receive a signal, and the signal would be lost."""
    os.mkfifo(tmp_path / "fifo")
    copy = 'trap "" TERM; read -t 1 <> "$FIFO" || true; trap - TERM; exec sleep 600'
    process = subprocess.run(
        ["bash", "-c", f'source "$ROOT/scripts/launch.sh"\n({copy}) &\nstop_processes_of $!\nwait $!'],
        env={**os.environ, "ROOT": str(ROOT), "FIFO": str(tmp_path / "fifo")},
        timeout=120,
        check=False,
    )
    assert process.returncode == 143


def test_a_launcher_is_stopped_where_the_shell_above_it_is_killed():
    process = start(SAVES)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.communicate(timeout=120)[0] == "saved\n"


def test_under_nohup_a_closed_terminal_changes_nothing():
    process = start("kill -HUP $PPID; kill -HUP $$; exit 5", ignored=True)
    assert process.wait(timeout=120) == 5
