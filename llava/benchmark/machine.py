"""The highest speeds of this machine: a matrix product's FLOP/s and a copy's bytes a second.

Both are the best of several timings after a warm-up. The product is of random numbers, because products of
zeros run faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from llava.benchmark.timing import (
    Clock,
    add_measure_flags,
    default_device,
    headline,
    provenance,
    publish,
    table,
)

PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}  # rows and columns of both matrices
COPY_BYTES = {"cuda": 4 * 2**30, "cpu": 2**28}  # read; as many are written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_measure_flags(parser, "--repeats", "--device", "--output_dir", "--name", repeats=10, name="machine")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write NAME.md and NAME.json."""
    device = args.device or default_device()
    figures = {**describe(device), **ceilings(device, args.repeats)}
    about = {**provenance(device, "bfloat16"), **figures}
    publish(args, args.name, about, as_markdown(about))


def describe(device: str) -> dict:
    """Return the GPU's memory, driver, CUDA version and the like; an empty dict without a GPU."""
    import torch

    if not device.startswith("cuda"):
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": (nvidia_smi("driver_version") or ["unknown"])[0].strip(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def nvidia_smi(query: str) -> list[str]:
    """Return the lines that nvidia-smi prints, one for each GPU; an empty list if it cannot be run."""
    import subprocess

    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def ceilings(device: str, repeats: int) -> dict[str, float]:
    """Return tflops of a bfloat16 product, and tb_s of a device's own copy (bytes read plus written)."""
    import torch

    num_bytes = COPY_BYTES[device.split(":")[0]]
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = Clock(device)
    return {
        "tflops": product_flops(device, torch.bfloat16, clock, repeats) / 1e12,
        "tb_s": 2 * num_bytes / best(lambda: target.copy_(source), clock, repeats) / 1e12,
    }


def product_flops(device: str, dtype, clock: Clock, repeats: int = 10) -> float:
    """Return the FLOP/s of a product of matrices with PRODUCT_SIZE rows and columns."""
    import torch

    size = PRODUCT_SIZE[device.split(":")[0]]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best(lambda: left @ right, clock, repeats)


def best(call: Callable[[], object], clock: Clock, repeats: int) -> float:
    """Return the seconds of the fastest of several calls, after one warm-up call."""
    call()
    return min(clock.timed(call) for _ in range(repeats))


def as_markdown(about: dict) -> str:
    columns = ["bfloat16 product, TFLOP/s", "copy, TB/s"]
    cells = [f"{about['tflops']:.1f}", f"{about['tb_s']:.3f}"]
    if "driver" in about:
        columns += ["memory, GiB", "driver", "CUDA", "NCCL"]
        cells += [f"{about['memory_gib']:.0f}", about["driver"], about["cuda"], about["nccl"]]
    return f"{headline(about)}.\n\n{table(columns, [cells])}"
