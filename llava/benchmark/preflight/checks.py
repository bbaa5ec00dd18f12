"""The checks. Each of them is run by work.py in its own process.

A check takes the request, which describes what the script would start, and returns its figures.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llava.benchmark.timing import default_device
from llava.errors import UserError
from llava.train.loader import loader_settings, num_cores

WORK = str(Path(__file__).parent / "work.py")
NO_RANK = ("--deepspeed",)  # flags that are left out in a process that is no rank of the run
SECONDS_OF_DATA = 10
MAX_WRITTEN = 2**30  # bytes; a tenth of the free space is a limit, too
FLOAT32_TRAINING_BYTES = 16  # for each parameter that learns: weight, gradient and AdamW's averages
OPTIMIZER_BYTES = 12  # for each parameter that learns: a float32 copy and AdamW's averages


@dataclass(frozen=True)
class Request:
    """The run that is to be checked.

    Attributes:
        launcher: the arguments before train_mem.py on the command line.
        flags: the arguments after it.
        num_devices: number of processes on all nodes.
        gpu_memory_mib: memory of a GPU; None: that of the smallest GPU here.
        decided: names of the flags that are chosen by the GPU memory.
    """

    launcher: list[str]
    flags: list[str]
    num_devices: int
    gpu_memory_mib: int | None
    decided: list[str]


def main_memory() -> int:
    """This machine's main memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def machine(request: Request) -> dict:
    """This machine's hardware and versions; for each GPU also the memory that is free now."""
    import platform

    import torch
    import transformers

    from llava.benchmark.machine import describe
    from llava.benchmark.timing import processor_name

    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = (num_bytes / 2**30 for num_bytes in torch.cuda.mem_get_info(index))
        gpus.append({"name": torch.cuda.get_device_name(index), "free_gib": free, "gib": total})
    return {
        "gpus": gpus,
        **describe(default_device()),
        "processor": processor_name(),
        "cores": num_cores(),
        "main_memory_gib": main_memory() / 2**30,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def feature(name: str) -> Callable[[Request], dict]:
    def check(request: Request) -> dict:
        from llava.benchmark.preflight.features import try_feature

        return try_feature(name, default_device())

    return check


def ceilings(request: Request) -> dict:
    from llava.benchmark.machine import ceilings

    return ceilings(default_device(), repeats=5)


def all_reduce(request: Request) -> dict:
    """Measure an all-reduce among the ranks that the run will have on this machine."""
    ranks = local_ranks(request)
    if ranks < 2:
        return {"ranks": ranks}
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        run([*launcher, "--nproc_per_node", str(ranks), WORK, "all_reduce", str(result)])
        return json.loads(result.read_text())


def local_ranks(request: Request) -> int:
    """The number of processes on this machine, by the launcher's arguments or else by the GPUs here."""
    words = request.launcher
    if "--nproc_per_node" in words:
        return int(words[words.index("--nproc_per_node") + 1])
    import torch

    return max(1, min(torch.cuda.device_count(), request.num_devices))


def run(command: list[str]) -> None:
    """Run a command. Raises RuntimeError if it fails, with the last line of its output that tells why."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout)  # into the check's log
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("preflight:", "train_mem.py:"))]
        errors = [line for line in lines if "Error" in line]
        raise RuntimeError((told or errors or lines or ["it printed nothing"])[-1].strip()[:500])


def sizes(request: Request):
    """The model's arguments, the run's arguments and the size of the model."""
    from llava.train.model_size import size_of
    from llava.train.recipe import parse

    place = ["--gpu_memory_mib", "1"]  # must be given where there is no GPU; sizes do not depend on it
    _, model_args, data_args, run_args = parse([*request.flags, *place])
    return model_args, run_args, size_of(model_args, data_args, run_args)


def disk(request: Request) -> dict:
    """Space and speed of the disk that the run writes to, and how much it will write.

    The result holds the whole model, or only the weights that learn if these are a projector or adapters. A
    checkpoint holds the same weights, and the optimiser's state for those that learn.
    """
    from llava.train.arguments import parse

    model_args, run_args, size = sizes(request)
    args = parse(without(request.flags, NO_RANK))[2]
    learnt = size.weight * size.learning
    alone = model_args.tune_mm_mlp_adapter or run_args.lora_enable or run_args.bits < 16
    result = learnt + (0 if alone else size.frozen)
    checkpoint = result + OPTIMIZER_BYTES * size.learning
    kept = 1 + (args.save_total_limit or 1)  # a new one is written before an old one is removed
    folder = Path(args.output_dir)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    block = os.urandom(2**20)
    num_blocks = max(1, min(MAX_WRITTEN, free // 10) // len(block))
    start = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(num_blocks):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - start
    return {
        "folder": str(folder),
        "free_gib": free / 2**30,
        "write_gb_s": num_blocks * len(block) / seconds / 1e9,
        "checkpoint_gib": checkpoint / 2**30,
        "needed_gib": (kept * checkpoint + result) / 2**30,
        "save_steps": args.save_steps,
    }


def data(request: Request) -> dict:
    """How many samples a second this machine prepares, and how long they are; no weights are read."""
    import torch

    from llava.data.collator import Collator
    from llava.data.stream import ShardDataset
    from llava.model.builder import image_processor_of
    from llava.model.language_model.builder import type_of
    from llava.model.plan import find_folder, look_at
    from llava.model.tokenizer import load_tokenizer, separator_ids
    from llava.train.arguments import parse
    from llava.train.model_size import configured
    from llava.train.train import sample_builder
    from llava.train.training_data import load_data, train_loader

    model_args, data_args, args = parse(without(request.flags, NO_RANK))
    if args.workers_are_auto:  # chosen for a single rank, since this process has no others
        args.dataloader_num_workers = loader_settings(num_cores(), local_ranks(request))[0]
    plan = look_at(find_folder(model_args.model_name_or_path, "--model_name_or_path", args.cache_dir))
    tokenizer = load_tokenizer(plan.path, padding_side="right", model_max_length=args.model_max_length)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    config = configured(model_args, data_args, args)
    config.slice_separator_ids = separator_ids(tokenizer)
    with torch.device("meta"):
        model = type_of(config)(config)
    builder = sample_builder(model, tokenizer, image_processor_of(model, plan), data_args.jpeg_draft)
    dataset = load_data(data_args, args, builder)
    collator = Collator(tokenizer.pad_token_id, padding_side="right")
    workers = min(num_cores(), args.dataloader_num_workers * local_ranks(request))
    if not isinstance(dataset, ShardDataset):  # a ShardDataset needs as many as it was made for
        args.dataloader_num_workers = workers
    samples, lengths, batches = 0, [], iter(train_loader(dataset, args, collator))
    next(batches)  # now all workers have started
    start = time.perf_counter()
    for batch in batches:
        samples += len(batch["record_names"])
        lengths += positions_of(model, batch)
        if time.perf_counter() - start > SECONDS_OF_DATA:
            break
    seconds = time.perf_counter() - start
    if not lengths:
        raise UserError("the records fill only one batch, which is too few to measure; give more records.")
    return {
        "records": None if isinstance(dataset, ShardDataset) else len(dataset),
        "samples_per_second": samples / seconds,
        "workers": workers,
        "mean_positions": statistics.mean(lengths),
        "longest": max(lengths),
    }


def positions_of(model, batch: dict) -> list[int]:
    """The length of each sequence of a batch, with an image's positions in place of its placeholder."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    lengths = (ids == ids if mask is None else mask).sum(dim=1)
    images = (ids < 0).sum(dim=1)
    sizes = iter(batch.get("image_sizes", []))
    visual = [
        sum(model.visual_positions_of(next(sizes)) - 1 for _ in range(count)) for count in images.tolist()
    ]
    return [length + more for length, more in zip(lengths.tolist(), visual, strict=True)]


def memory(request: Request) -> dict:
    """The memory of a GPU by parts, and the largest batches that fit."""
    from llava.train.memory import GIB, USUAL_TEXT, largest_batch
    from llava.train.recipe import decide

    place = ["--num_gpus", str(request.num_devices)]
    if request.gpu_memory_mib:
        place += ["--gpu_memory_mib", str(request.gpu_memory_mib)]
    decision = decide([*without(request.flags, request.decided), *place])
    size, batch, recipe = decision.size, decision.batch, decision.recipe
    usual = min(batch.length, size.tokens + USUAL_TEXT)

    def most(length: int, recompute: bool) -> int:
        gpu = decision.place.gpu_bytes
        return largest_batch(
            size, gpu, request.num_devices, length, recipe.zero, recompute, batch.accumulates
        )

    return {
        "lines": decision.lines(),
        "zero": recipe.zero.name,
        "parts_gib": {name: value / GIB for name, value in asdict(recipe.budget).items()},
        "total_gib": recipe.budget.total / GIB,
        "batch_size": batch.sequences,
        "fits": recipe.most_positions == batch.positions,
        "longest": batch.length,
        "usual": usual,
        "largest_of_longest": most(batch.length, recompute=True),
        "largest_of_usual": most(usual, recompute=True),
        "largest_of_usual_kept": most(usual, recompute=False),
    }


def steps(request: Request) -> dict:
    """Do a few steps of the run under its own launcher; if it has several nodes, on this node only.

    Raises UserError if there is no GPU and the model would need more than half of this machine's memory.
    """
    if default_device() == "cpu":
        size = sizes(request)[2]
        needed = FLOAT32_TRAINING_BYTES * size.learning + size.frozen
        here = main_memory()
        if needed > here / 2:
            raise UserError(
                f"this machine has no GPU, and the model needs {needed / 2**30:.0f} of {here / 2**30:.0f} "
                "GiB of main memory; run the preflight on the machine that will train it."
            )
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        launcher, nodes = on_this_node(request.launcher)
        run([*launcher, WORK, "steps", str(result), f"{scratch}/run", *request.flags])
        figures = json.loads(result.read_text())
    if not figures.pop("max_steps_given"):
        figures["max_steps"] = math.ceil(figures["max_steps"] / nodes)
    return figures | {"nodes": nodes, "samples_a_step": nodes * figures["samples_a_step"]}


def on_this_node(launcher: list[str]) -> tuple[list[str], int]:
    """The launcher's arguments that start only this node's ranks, and the number of nodes."""
    if "--nnodes" not in launcher:
        return launcher, 1
    nodes = int(launcher[launcher.index("--nnodes") + 1])
    words = without(launcher, ("--nnodes", "--node_rank", "--master_addr", "--master_port"))
    place = words.index("torch.distributed.run") + 1
    return [*words[:place], "--standalone", *words[place:]], nodes


def without(flags: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without these flags and their values."""
    places = {place for name in names for place, flag in enumerate(flags) if flag == name}
    return [flag for place, flag in enumerate(flags) if not {place, place - 1} & places]


FEATURES = ("bf16", "flash_attention_2", "flash_attention_3", "bitsandbytes", "deepspeed", "liger")
# Each with the seconds that it may take. `memory` comes before `steps`, whose flags depend on the memory.
CHECKS: dict[str, tuple[Callable[[Request], dict], int]] = {
    "machine": (machine, 60),
    **{name: (feature(name), 180 if name == "deepspeed" else 60) for name in FEATURES},
    "ceilings": (ceilings, 60),
    "all_reduce": (all_reduce, 120),
    "disk": (disk, 120),
    "data": (data, 180),
    "memory": (memory, 120),
    "steps": (steps, 600),
}


def answer(name: str, request: str, result: str) -> None:
    """Run a check and write {"figures": ...} or {"problem": ..., "says_remedy": true} to the file `result`.

    The request is JSON. An exception other than UserError is not caught: its traceback is in the check's log,
    and the last line of it is on the page.
    """
    check = CHECKS[name][0]
    try:
        outcome: dict = {"figures": check(Request(**json.loads(request)))}
    except UserError as error:
        outcome = {"problem": str(error), "says_remedy": True}
    Path(result).write_text(json.dumps(outcome))
