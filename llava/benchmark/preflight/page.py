"""The page of a preflight's results, in Markdown that is also readable in a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import datetime, timedelta

from llava.benchmark.preflight.checks import FEATURES
from llava.benchmark.timing import table

REMEDIES = {
    "machine": "check that torch is installed and that nvidia-smi works",
    "bf16": "set PRECISION=fp16, or PRECISION=fp32 on a CPU",
    "flash_attention_2": "leave --attn_implementation out; the run then uses PyTorch's own kernel",
    "flash_attention_3": "leave --attn_implementation out; the run then uses PyTorch's own kernel",
    "bitsandbytes": "leave --bits out, or install another version of bitsandbytes",
    "deepspeed": "set DEEPSPEED_CONFIG=none, or install another version of deepspeed",
    "liger": "leave --use_liger_kernel out, or install another version of liger-kernel",
    "ceilings": "check with nvidia-smi which other processes use the GPU",
    "all_reduce": "set NCCL_DEBUG=INFO; if NCCL_P2P_DISABLE=1 helps, a link between GPUs is faulty",
    "disk": "set OUTPUT_DIR to a folder that can be written to",
    "data": "set DATA_PATH, IMAGE_FOLDER and MODEL to paths on this machine; "
    "python -m llava.data.validate checks records",
    "memory": "set MODEL and VISION_TOWER to paths on this machine; without a GPU, give --gpu_memory_gib",
    "steps": "correct the problem, because the run would fail in the same way",
}


def as_markdown(results: dict) -> str:
    checks = results["checks"]
    figures = {name: outcome["figures"] for name, outcome in checks.items() if "figures" in outcome}
    problems = problems_of(checks, figures)
    script = results["script"].removesuffix(".sh")
    verdict = "No problem was found." if not problems else f"{len(problems)} problem(s) found:"

    def section(name: str, make: Callable[..., str], *more) -> str:
        return make(figures, *more) if name in figures else ""

    sections = [
        f"# Preflight of scripts/{script}.sh\n\n{results['date']}. {verdict}\n",
        "".join(f"- {problem}\n" for problem in problems),
        section("machine", machine_section),
        features_section(checks),
        ceilings_section(figures),
        section("disk", disk_section),
        section("memory", memory_section),
        section("steps", forecast_section, datetime.fromisoformat(results["date"])),
        f"## Command\n\n```\n{results['command']}\n```\n",
    ]
    return "\n".join(filter(None, sections))


def problems_of(checks: dict, figures: dict) -> list[str]:
    """The problems, each with what to do; a problem of several checks is listed once, with their names."""
    met_by: dict[str, list[str]] = {}
    for name, outcome in checks.items():
        if "problem" in outcome:
            remedy = "" if outcome.get("says_remedy") else f" What to do: {REMEDIES[name]}."
            met_by.setdefault(f"{outcome['problem'].rstrip('.')}.{remedy}", []).append(name)
    problems = [f"**{', '.join(names)}**: {problem}" for problem, names in met_by.items()]
    disk, memory, data = (figures.get(name) for name in ("disk", "memory", "data"))
    if disk and disk["free_gib"] < disk["needed_gib"]:
        problems.append(
            f"**disk**: the run writes {disk['needed_gib']:.0f} GiB, and {disk['folder']} has "
            f"{disk['free_gib']:.0f} GiB free. What to do: make room, or set OUTPUT_DIR to another disk."
        )
    if memory and not memory["fits"]:
        problems.append(
            f"**memory**: {memory['batch_size']} records of {memory['longest']} positions do not fit. What "
            f"to do: set BATCH_SIZE={max(1, memory['largest_of_longest'])}, or lower MODEL_MAX_LENGTH."
        )
    for gpu in figures.get("machine", {}).get("gpus", []):
        if gpu["free_gib"] < 0.9 * gpu["gib"]:
            problems.append(
                f"**machine**: other processes use {gpu['gib'] - gpu['free_gib']:.0f} of {gpu['gib']:.0f} "
                f"GiB of {gpu['name']}. What to do: end them, or choose other GPUs with CUDA_VISIBLE_DEVICES."
            )
    need = demand(figures)
    if need and data and data["samples_per_second"] < need:
        problems.append(
            f"**data**: this machine prepares {data['samples_per_second']:.0f} samples per second, but the "
            f"steps use {need:.0f}. What to do: raise NUM_WORKERS if processors are idle, or put "
            "IMAGE_FOLDER on a faster disk."
        )
    return problems


def demand(figures: dict) -> float | None:
    """The samples a second that the measured steps use; None if no steps were measured."""
    steps = figures.get("steps")
    return steps and steps["samples_a_step"] / statistics.median(steps["seconds"])


def machine_section(figures: dict) -> str:
    machine = figures["machine"]
    gpus = machine["gpus"]
    rows = [
        [index, gpu["name"], f"{gpu['gib']:.0f}", f"{gpu['free_gib']:.0f}"] for index, gpu in enumerate(gpus)
    ]
    text = table(["GPU", "name", "GiB", "free, GiB"], rows) if gpus else "No GPU.\n"
    versions = [f"{name} {machine[name]}" for name in ("python", "torch", "transformers")]
    if gpus:
        versions += [f"driver {machine['driver']}", f"CUDA {machine['cuda']}", f"NCCL {machine['nccl']}"]
    processor = f"{machine['cores']} cores of {machine['processor']}, {machine['main_memory_gib']:.0f} GiB"
    return f"## Machine\n\n{text}\n{processor}; {', '.join(versions)}.\n"


def features_section(checks: dict) -> str:
    rows = []
    for name in FEATURES:
        if name in checks:
            outcome = checks[name].get("figures", {"outcome": f"failed: {checks[name].get('problem')}"})
            rows.append([name, outcome["outcome"], outcome.get("remedy", "")])
    return (
        f"## What works\n\n{table(['feature', 'result of a step', 'how to install'], rows)}" if rows else ""
    )


def ceilings_section(figures: dict) -> str:
    rows = []
    if "ceilings" in figures:
        rows += [["bfloat16 product", f"{figures['ceilings']['tflops']:.3g} TFLOP/s"]]
        rows += [["copy within the device", f"{figures['ceilings']['tb_s']:.3g} TB/s, reading and writing"]]
    if "gb_s" in figures.get("all_reduce", {}):
        reduce = figures["all_reduce"]
        rows += [[f"all-reduce of {reduce['ranks']} ranks", f"{reduce['gb_s']:.1f} GB/s of bus bandwidth"]]
    if "data" in figures:
        data = figures["data"]
        speed = f"{data['samples_per_second']:.1f} samples/s by {data['workers']} workers"
        need = f"; the steps use {demand(figures):.1f}" if demand(figures) else ""
        rows += [["records of DATA_PATH", speed + need]]
    return f"## Ceilings, measured\n\n{table(['what', 'at most'], rows)}" if rows else ""


def disk_section(figures: dict) -> str:
    disk = figures["disk"]
    return (
        f"## Disk\n\n{disk['folder']} has {disk['free_gib']:.0f} GiB free and is written to at "
        f"{disk['write_gb_s']:.2f} GB/s. A checkpoint of {disk['checkpoint_gib']:.1f} GiB takes "
        f"{seconds_to_save(disk):.0f} s every {disk['save_steps']:g} steps. The run needs "
        f"{disk['needed_gib']:.1f} GiB.\n"
    )


def seconds_to_save(disk: dict) -> float:
    """Seconds that writing a checkpoint takes."""
    return disk["checkpoint_gib"] * 2**30 / 1e9 / disk["write_gb_s"]


def memory_section(figures: dict) -> str:
    memory = figures["memory"]
    parts = {name: f"{value:.1f}" for name, value in memory["parts_gib"].items()}
    rows = [[memory["zero"], *parts.values(), f"{memory['total_gib']:.1f}"]]
    largest = {
        f"{memory['longest']} positions, recomputed": memory["largest_of_longest"],
        f"{memory['usual']} positions, recomputed": memory["largest_of_usual"],
        f"{memory['usual']} positions, activations kept": memory["largest_of_usual_kept"],
    }
    return (
        f"## Memory per GPU, GiB\n\n{table(['ZeRO', *parts, 'total'], rows)}\n"
        + "".join(f"- {line}\n" for line in memory["lines"])
        + f"\n{table(['sequences of', 'largest BATCH_SIZE that fits'], [[*row] for row in largest.items()])}"
    )


def forecast_section(figures: dict, now: datetime) -> str:
    steps, disk, data = figures["steps"], figures.get("disk"), figures.get("data")
    times = steps["seconds"]
    seconds, saves = statistics.median(times), 0.0
    if disk and disk["save_steps"] >= 1:
        saves = steps["max_steps"] // disk["save_steps"] * seconds_to_save(disk)
    training, saving = (timedelta(seconds=round(each)) for each in (seconds * steps["max_steps"], saves))
    nodes = ""
    if steps["nodes"] > 1:
        nodes = f" on one of {steps['nodes']} nodes, without communication between nodes,"
    length = f" Sequences have {data['mean_positions']:.0f} positions on average." if data else ""
    return (
        f"## Forecast\n\n{len(times)} steps with random weights{nodes} took {min(times):.2f} to "
        f"{max(times):.2f} s, with a median of {seconds:.2f} s: "
        f"{steps['samples_a_step'] / seconds:.1f} samples/s, {steps['peak_memory_gib']:.1f} GiB at most."
        f"{length}\n\n"
        f"{steps['max_steps']:,} steps will take **{spoken(training)}**, and saving {spoken(saving)}. "
        f"Started now, the run ends on {now + training + saving:%Y-%m-%d at %H:%M}.\n"
    )


def spoken(time: timedelta) -> str:
    """A duration as text, such as "2 days 3 h", "5 h 12 min" or "40 s"."""
    hours, rest = divmod(time.seconds, 3600)
    if time.days:
        return f"{time.days} day{'s' if time.days > 1 else ''} {hours} h"
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min" if rest >= 60 else f"{rest} s"
