"""Run a command and append a line to a log: its name, wall seconds, peak memory in MiB and exit code.

    python scripts/measure.py --name stage1 --log times.tsv -- bash scripts/v1_5/pretrain.sh

Memory is the sum of the resident sets of the command and all its descendants, sampled five times a second. If
the kernel's own peak of the largest process is higher, it is reported instead.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

INTERVAL = 0.2  # seconds
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def measure(command: list[str]) -> tuple[float, float, int]:
    """Run a command to its end, or terminate it when the process that started this one disappears.

    Returns:
        (wall seconds, peak MiB, exit code; 128 + n for signal n).
    """
    parent, peak, start = os.getppid(), 0, time.monotonic()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal also sends it to the command; we must record it
    signal.signal(signal.SIGTERM, lambda received, _: process.send_signal(received))
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, _resident_bytes(tree))
        if os.getppid() != parent:
            _terminate(tree)
        time.sleep(INTERVAL)
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MAXRSS_BYTES)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return time.monotonic() - start, peak / 2**20, code


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident_bytes(process: psutil.Process) -> int:
    total = 0
    for member in _family(process):
        try:
            total += member.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


def _terminate(process: psutil.Process) -> None:
    for member in _family(process):
        try:
            member.terminate()
        except psutil.NoSuchProcess:
            continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="name of the line")
    parser.add_argument(
        "--log", type=Path, required=True, help="tab-separated file, to which the line is added"
    )
    parser.add_argument("command", nargs="+", help="command to measure, after --")
    options = parser.parse_args()
    seconds, peak_mib, code = measure(options.command)
    with options.log.open("a", encoding="utf-8") as log:
        log.write(f"{options.name}\t{seconds:.1f}\t{peak_mib:.0f}\t{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
