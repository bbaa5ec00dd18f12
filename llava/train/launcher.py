"""Ends a rank's process: together with the launcher that started it, or when its work is done."""

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
    """If a launcher started this process, have the process end soon after the launcher does.

    It ends as abruptly as by SIGKILL, which leaves no incomplete checkpoint under a checkpoint's name. A
    process that was started by hand goes on after its shell ends.
    """
    if _is_launched():
        launcher = os.getppid()
        sys.excepthook = partial(_report, launcher)
        threading.Thread(target=_watch, args=(launcher,), daemon=True).start()


def run_rank(work: Callable[[], None]) -> None:
    """Do a rank's work. If a launcher started the process, end it before the interpreter's finalization.

    Collectives on CPUs run in gloo's threads. A thread that releases a tensor during finalization aborts the
    process (https://github.com/pytorch/pytorch/pull/179291), and a finished run would count as failed.
    destroy_process_group() ends the threads only if nothing refers to the groups, but DeepSpeed always does.
    """
    if not _is_launched():
        return work()
    status = 0
    try:
        work()
    except SystemExit as end:  # as in Python, any code but a number is a message
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
    while os.getppid() == launcher:  # if the launcher ends, the parent changes at once
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _end(launcher)


def _report(launcher: int, *exception) -> None:
    """sys.excepthook: if the launcher has ended, say so: collectives fail because other ranks end with it."""
    if os.getppid() == launcher:
        sys.__excepthook__(*exception)
    else:
        _end(launcher)


def _end(launcher: int) -> None:
    _ENDING.acquire()  # and never release it: only the first thread goes on
    try:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # so that each node prints one line
            print(
                f"train_mem.py: the launcher, process {launcher}, has ended, so its training processes end "
                "too. The same command continues from the last complete checkpoint.",
                file=sys.__stderr__,  # torch's excepthook collects what goes to sys.stderr
                flush=True,
            )
    finally:
        os._exit(1)
