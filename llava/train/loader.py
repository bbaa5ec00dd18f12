"""The number of processes that prepare a rank's batches, and how many batches ahead they work."""

import math
import os
from collections.abc import Callable

MOST_WORKERS = 8  # these prepare more than one GPU takes; each holds its own batches in memory
MOST_AHEAD = 8


def loader_settings(cores: int, ranks: int, accumulation: int = 1) -> tuple[int, int]:
    """The rule of --dataloader_num_workers auto: (workers of a rank, batches that each prepares ahead).

    A rank gets its share of the cores minus one, which runs the rank itself. It gets at least one worker, so
    that batches are prepared while the device computes. Together the workers hold the batches of two steps.

    Args:
        cores: the number of cores of this node.
        ranks: the number of ranks on this node.
        accumulation: batches that a rank takes in one step.
    """
    workers = max(1, min(MOST_WORKERS, cores // ranks - 1))
    return workers, max(2, min(MOST_AHEAD, math.ceil(2 * accumulation / workers)))


def worker_options(args, collator: Callable) -> dict:
    """The options from the flags that every loader of a run gets, for training and for evaluation."""
    return {
        "collate_fn": collator,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }


def num_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_ranks() -> int:
    """The number of ranks on this node, which torchrun or DeepSpeed's launcher sets."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
