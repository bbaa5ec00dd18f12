"""Measure, under torchrun, the GB/s of an all-reduce, counted as the bus bandwidth of nccl-tests."""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

NUM_BYTES = {"cuda": 2**29, "cpu": 2**24}


def measure(result: str) -> None:
    """Measure as one of the ranks; rank 0 writes the figures to the file `result`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    tensor = torch.ones(NUM_BYTES[device] // 4, device=device)
    seconds = []
    for _ in range(6):
        dist.barrier()
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    ranks = dist.get_world_size()
    if dist.get_rank() == 0:
        bandwidth = 2 * (ranks - 1) / ranks * NUM_BYTES[device] / min(seconds[1:]) / 1e9
        Path(result).write_text(json.dumps({"gb_s": bandwidth, "ranks": ranks}))
    dist.destroy_process_group()
