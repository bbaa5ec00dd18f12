"""Shared by benchmarks: a device's own clock, turns, work and memory, provenance, flags and files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from llava.command import add_declared
from llava.errors import UserError
from llava.wholefile import write_text


class Clock:
    """A device's own clock: CUDA events on a GPU, the host's clock elsewhere.

    An event is a mark in the device's queue, so that reading the time does not wait within what is timed. The
    clock waits only before the start, when nothing may be running, and after the end.

    Args:
        processor: off a GPU, count this process's processor time, summed over its threads. Use it to compare
            times on a machine that others use too.
    """

    def __init__(self, device: str, processor: bool = False):
        self.on_gpu = device.startswith("cuda")
        self._host_time = time.process_time if processor else time.perf_counter

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def now(self):
        if not self.on_gpu:
            return self._host_time()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start, end) -> float:
        """Return the seconds between two moments; waits for the later one."""
        if not self.on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def timed(self, call: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        self.wait()
        start = self.now()
        call()
        return self.seconds(start, self.now())


Key = TypeVar("Key")


def take_turns(calls: dict[Key, Callable[..., dict]], repeats: int) -> dict[Key, list[dict]]:
    """Return what each call returns, round by round; a first round warms up and is not kept.

    Calls take turns within a round, so that other work on the machine affects all of them alike. One call's
    figure can thus be divided by another's of the same round.
    """
    from tqdm import tqdm

    kept = {key: [] for key in calls}
    for _ in tqdm(range(repeats + 1), desc="rounds"):
        for key, call in calls.items():
            kept[key].append(call())
    return {key: figures[1:] for key, figures in kept.items()}


def medians(calls: dict, repeats: int, device: str, processor: bool = False) -> dict:
    """Return each call's median seconds over rounds in which they take turns; `processor` as in Clock."""
    clock = Clock(device, processor)
    turns = take_turns(
        {key: lambda call=call: {"seconds": clock.timed(call)} for key, call in calls.items()}, repeats
    )
    return {key: median(rounds, "seconds") for key, rounds in turns.items()}


def median(rounds: list[dict], name: str) -> float:
    return statistics.median(figures[name] for figures in rounds)


def median_ratio(rounds: list[dict], others: list[dict], name: str) -> float:
    """Return the median over the rounds of one call's figure divided by another's in the same round."""
    pairs = zip(rounds, others, strict=True)
    return statistics.median(figures[name] / other[name] for figures, other in pairs)


def gflop(call: Callable[[], object]) -> float:
    """Count a call's multiplications and additions in matrix products and convolutions, in billions.

    Attention is counted as its two products over all positions, masked or not. Works on the meta device.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's own attention kernel
        call()
        with FlopCounterMode(display=False) as count:
            call()
    return count.get_total_flops() / 1e9


def peak_mib(call: Callable[[], object], device: str) -> float:
    """Return the peak memory of a call beyond what is held before it, in MiB."""
    import torch

    call()
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def resident() -> int:
    """Return the bytes of main memory that this process holds now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_process_mib(work: Callable[[], object], poll: float = 0.005) -> float:
    """Return this process's peak main memory during `work` beyond what it holds before, in MiB (Linux).

    Args:
        poll: seconds between two readings.
    """
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(poll):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 2**20


# ---- Provenance: where figures come from


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def provenance(device: str, dtype: str) -> dict:
    """Return what every output carries: command, date, machine, threads, versions and dtype."""
    import torch
    import transformers

    on_gpu = device.startswith("cuda")
    return {
        "command": " ".join(["python -m llava.benchmark", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "dtype": dtype,
    }


def processor_name() -> str:
    """Return the CPU's name on Linux; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def headline(about: dict) -> str:
    """Return the line above a table, which states the provenance of its figures."""
    versions = about["versions"]
    where = about["machine"]
    if not about["device"].startswith("cuda"):
        where = f"{about['threads']} threads on {about['cores']} cores of {where}"
    return (
        f"`{about['command']}`, {about['date']}: {where}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, {about['dtype']}"
    )


# ---- Flags and files


# In the form that add_declared takes
FLAGS: dict[str, dict] = {
    "repeats": {"type": int, "default": 5, "help": "timed rounds, after one round of warm-up"},
    "device": {"help": "cuda or cpu; default: cuda if there is a GPU"},
    "dtype": {
        "choices": ("float32", "bfloat16", "float16"),
        "help": "default: float32, or bfloat16 for large shapes",
    },
    "processor_time": {
        "action": "store_true",
        "help": "on a CPU: measure processor time over all threads, for machines that run other programs too",
    },
    "output_dir": {"type": Path, "default": Path("playground/benchmark")},
    "name": {"help": "name of the files in --output_dir; default: depends on what is measured"},
    "docs": {"type": Path, "help": "page with a place for this table, into which it is written"},
}


def add_measure_flags(parser, *flags: str, **defaults) -> None:
    """Add some of FLAGS to a parser, with add_declared."""
    add_declared(parser, FLAGS, flags, defaults)


def publish(args: argparse.Namespace, name: str, content: dict, text: str) -> None:
    """Print a result, write its files below --output_dir, and put it on the page that --docs names."""
    write(args.output_dir, name, content, text)
    if getattr(args, "docs", None):
        paste(args.docs, name, text)
    print(text)


def table(columns: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) + "\n"


def write(folder: Path, name: str, content: dict, text: str) -> None:
    """Write name.json and name.md."""
    write_text(folder / f"{name}.json", json.dumps(content, indent=1))
    write_text(folder / f"{name}.md", text)


def paste(page: Path, name: str, text: str) -> None:
    """Put a result on a documentation page, between <!-- name --> and <!-- end name -->.

    Raises UserError if the page has no such place.
    """
    before, start, end, after = _place(page, name)
    page.write_text(f"{before}{start}{text}{end}{after}")


def check_place(page: Path | None, name: str) -> None:
    """Check before a measurement that `paste` will find its place, if there is a page."""
    if page is not None:
        _place(page, name)


def _place(page: Path, name: str) -> tuple[str, str, str, str]:
    if not page.is_file():
        raise UserError(f"--docs {page} is not a file.")
    content = page.read_text()
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if start not in content or end not in content:
        raise UserError(
            f"--docs {page} has no lines {start.strip()} and {end}; add them at the place of the table."
        )
    before, rest = content.split(start, 1)
    return before, start, end, rest.split(end, 1)[1]
