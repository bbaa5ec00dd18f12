"""How a rank ends: with the launcher that started it, or at the end of its own work."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")  # set for each rank by torchrun and by DeepSpeed's launcher
SECONDS_BETWEEN_LOOKS = 1.0
_ENDING = threading.Lock()


def end_with_launcher() -> None:
    """From now on this process ends soon after its parent does, if the parent is a launcher.

    It ends as by SIGKILL, which leaves no half of a checkpoint under a checkpoint's name. A process that was
    started by hand goes on after its shell.
    """
    if _is_launched():
        launcher = os.getppid()
        sys.excepthook = partial(_report, launcher)
        threading.Thread(target=_watch, args=(launcher,), daemon=True).start()


def run_rank(work: Callable[[], None]) -> None:
    """Do a rank's work and end its process, ahead of the interpreter's finalization if a launcher started it.

    Collectives on CPUs run in threads of gloo. One that releases a tensor during finalization aborts the
    process (https://github.com/pytorch/pytorch/pull/179291), and a finished run would count as failed.
    destroy_process_group() ends the threads only where nothing refers to the groups; DeepSpeed always does.
    """
    if not _is_launched():
        return work()
    status = 0
    try:
        work()
    except SystemExit as end:  # a code that is no number is a message, as Python has it
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code != status and end.code is not None:
            print(end.code, file=sys.stderr)
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_launched() -> bool:
    return any(mark in os.environ for mark in MARKS)


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:  # an orphan gets another parent at once
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _end(launcher)


def _report(launcher: int, *exception) -> None:
    """sys.excepthook: a rank that ended earlier with the launcher breaks the collectives of this one."""
    if os.getppid() == launcher:
        sys.__excepthook__(*exception)
    else:
        _end(launcher)


def _end(launcher: int) -> None:
    _ENDING.acquire()  # by the first thread that comes here, for good
    try:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one line a node
            print(
                f"train_mem.py: the launcher, process {launcher}, has ended, so its training processes end "
                "too. The same command goes on from the last whole checkpoint.",
                file=sys.__stderr__,  # torch's excepthook collects what goes to sys.stderr
                flush=True,
            )
    finally:
        os._exit(1)
