"""Training runs whose ranks are separate processes that can be killed, limited and waited for.

The processes are forked from a server that has imported all modules. A run then takes a second or two, and
not ten.
"""

import contextlib
import functools
import gc
import importlib
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from ports import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["llava.train.train", "deepspeed", "matplotlib.backends.backend_agg"])


@dataclass
class KillAt:
    """Sends SIGKILL before or after the `call`-th call of `module`'s `function`, on one rank.

    `half`: the call writes a file, and only its first bytes reach the disk.
    """

    module: str
    function: str
    call: int = 1
    when: str = "before"
    rank: int = 0

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        *owners, name = self.function.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(self.module))
        original, calls = getattr(owner, name), []

        @functools.wraps(original)
        def killing(*args, **kwargs):
            calls.append(1)
            if len(calls) < self.call:
                return original(*args, **kwargs)
            if self.when == "after":
                original(*args, **kwargs)
            if self.when == "half":
                Path(args[1]).write_bytes(b"PK half of a file")
            return os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, killing)


def _rank_main(rank, world_size, port, argv, prepare, log):
    # unbuffered, with both streams in one file, like 2>&1 in a shell
    with open(log, "a", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if world_size > 1:
        os.environ |= {name: str(value) for name, value in environment.items()}
    multiprocessing.set_start_method(None, force=True)  # data workers then start as in a run from a shell
    gc.freeze()  # the imported objects, so that garbage collections of a run are short
    torch.set_num_threads(1)
    sys.argv = ["train_mem.py", *argv]
    if prepare is not None:
        prepare(rank)
    from llava.train.train import train

    train(argv)


def run(argv: list[str], log: Path, world_size: int = 1, prepare=None, timeout: float = 300) -> list[int]:
    """Runs the ranks and returns their exit statuses; a negative one is the signal that ended the rank.

        Args:
            argv: flags of train_mem.py.
    log: file to which the output of all ranks is appended.
    prepare: a picklable function that each rank calls with its number before the run.
    timeout: seconds until a rank must have ended, and from then until the others are killed.
    """
    port = free_port()
    arguments = [(rank, world_size, port, argv, prepare, str(log)) for rank in range(world_size)]
    ranks = [CONTEXT.Process(target=_rank_main, args=each) for each in arguments]
    for process in ranks:
        process.start()
    try:
        multiprocessing.connection.wait([process.sentinel for process in ranks], timeout)
        killed = any(
            (process.exitcode or 0) < 0 for process in ranks
        )  # the others would wait for it for ever
        for process in ranks:
            process.join(0 if killed else timeout)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def kill_tree(root: int) -> None:
    """Sends SIGKILL to a process and all its descendants, of which some may already have ended."""
    process = psutil.Process(root)
    for each in (*process.children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
