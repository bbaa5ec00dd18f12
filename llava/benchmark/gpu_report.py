"""All figures that need a GPU, part by part, the most important first; and the pages that show them.

Each part runs in a process of its own with a time limit, and writes its JSON when it ends. So if a part fails
or the report is cut short, the results of the other parts remain. Processes are forked from a server that has
imported torch and transformers, because importing them again would take a part's first seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from llava.benchmark.commands import MEASURES, call
from llava.benchmark.gpu_pages import count_tests, fill_pages
from llava.benchmark.machine import nvidia_smi
from llava.benchmark.timing import write
from llava.errors import UserError
from llava.wholefile import write_text

RESULTS = Path("docs/results")
ROOT = Path(__file__).parents[2]
TYPES = "mlp2x_gelu,tokenpacker,visualprism_plain,visualprism,visualprism_v2"
FORMS = "--forms compile graph --dtype bfloat16 --scale_factors 2 --repeats 20"


@dataclass(frozen=True)
class Part:
    """One part of the report, which runs in a process of its own.

    Attributes:
        name: the name of its files in the results folder.
        command: arguments of python -m llava.benchmark; None: run the tests in tests/gpu.
        limit: seconds after which the process is killed.
        title: the heading above its table.
        needs: packages without which the part is left out.
    """

    name: str
    command: str | None
    limit: int
    title: str
    needs: tuple[str, ...] = ()


# Maps a mark in a training step's part name to (flags, what the title says, a package that it needs)
STEP_OPTIONS = {
    "lora": ("--lora", " by LoRA", "peft"),
    "stage1": ("--stage 1", "", ""),
    "liger": ("--use_liger_kernel", ", Liger's kernels", "liger_kernel"),
    "recompute": ("--gradient_checkpointing", ", recomputed", ""),
    "compiled": ("--scale_factors 2 --compile_layers", ", layers compiled", ""),
}


def step(shape: str, batch_size: int, *marks: str) -> Part:
    """Return the part for training steps of a model; `marks` are keys of STEP_OPTIONS, in that order."""
    flags, said, needs = zip(("", "", ""), *(STEP_OPTIONS[mark] for mark in marks), strict=True)
    method, others = ("".join(s for s in said if s.startswith(start)) for start in (" ", ","))
    return Part(
        "_".join(["step", shape, *marks]),
        f"step --repeats 2 --shape {shape} --batch_size {batch_size} {' '.join(flags)}",
        70,
        f"Stage {1 if 'stage1' in marks else 2}{method}, {shape.upper()}{others}",
        tuple(filter(None, needs)),
    )


def projectors(images: int, title: str) -> Part:
    command = f"projectors --types {TYPES} {FORMS} --batch_size {images}"
    return Part(f"projectors_b{images}", command, 100, title)


def speed(name: str, flags: str, title: str, limit: int = 60) -> Part:
    return Part(f"speed_{name}", f"speed --no_batch --repeats 3 {flags}", limit, title)


COMPILED = "--scale_factors 2 --decode compile --no_theirs"
# Batch sizes of training steps are what one H100 holds uncompressed; compressed, it would hold far more
PARTS = (
    Part("machine", "machine", 40, "The machine"),
    Part("tests", None, 240, "Tests of tests/gpu"),
    projectors(32, "Projectors, 32 images"),
    speed("7b", "--shape 7b --new_tokens 9", "7B, one sequence"),
    speed("7b_batch16", "--shape 7b --batch_size 16 --new_tokens 9", "7B, sixteen sequences"),
    step("1.5b", 48, "liger"),
    step("7b", 24, "lora", "liger"),
    speed("1.5b", "--shape 1.5b", "1.5B, one sequence"),
    speed("1.5b_compile", f"--shape 1.5b {COMPILED}", "1.5B, vision and decoding compiled", 120),
    step("1.5b", 32),
    step("7b", 16, "lora"),
    step("7b", 16, "stage1"),
    projectors(1, "Projectors, one image"),
    step("1.5b", 48, "recompute"),
    step("7b", 32, "lora", "recompute"),
    step("7b", 32, "stage1", "recompute"),
    step("1.5b", 32, "compiled"),
    Part(
        "capacity_7b", "speed --shape 7b --no_theirs --repeats 1 --new_tokens 256", 120, "7B, largest batch"
    ),
    Part(
        "ablation", "ablation --config scripts/ablation/gpu.yaml", 3600, "The study scripts/ablation/gpu.yaml"
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--minutes", type=float, default=9, help="time limit for all parts together")
    add("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these parts, in this order")
    add("--output_dir", type=Path, help="folder for results; default: docs/results/gpu_CARD")
    add(
        "--docs",
        action="store_true",
        help="measure nothing; write the tables of --output_dir into README and docs",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the parts, or fill the pages from the results of an earlier run."""
    folder = args.output_dir or RESULTS / f"gpu_{card_name()}"
    if args.docs:
        fill_pages(folder, {part.name: part.title for part in PARTS})
        return
    chosen = [part for name in args.parts or [p.name for p in PARTS] for part in PARTS if part.name == name]
    outcomes = run_parts(chosen, folder, 60 * args.minutes)
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome['outcome']}, {outcome['seconds']:.0f} s")


def card_name() -> str:
    """Return the first GPU's name in the form used in a folder's name, such as nvidia_h100_80gb_hbm3.

    Raises UserError if nvidia-smi names no GPU.
    """
    names = nvidia_smi("name")
    if not names:
        raise UserError("nvidia-smi lists no GPU; give --output_dir, the folder of earlier results.")
    return re.sub(r"\W+", "_", names[0].strip().lower())


def run_parts(parts: list[Part], folder: Path, seconds: float) -> dict[str, dict]:
    """Run the parts in turn until the time is over; parts.json gets each outcome as soon as its part ends."""
    folder.mkdir(parents=True, exist_ok=True)
    end, record = time.monotonic() + seconds, folder / "parts.json"
    outcomes = json.loads(record.read_text()) if record.is_file() else {}
    # So that modules that look for a GPU at import do not start CUDA, which forked processes could not use
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["llava.benchmark.speed.measure"])
    for part in parts:
        left, start = end - time.monotonic(), time.monotonic()
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if missing:
            outcome = f"left out, because {', '.join(missing)} is not installed"
        elif left < 10:
            outcome = "left out, because the time was over"
        else:
            print(f"== {part.name}", flush=True)
            outcome = outcome_of(processes.Process(target=work, args=(part, folder)), min(part.limit, left))
        outcomes[part.name] = {"outcome": outcome, "seconds": time.monotonic() - start}
        write_text(record, json.dumps(outcomes, indent=1) + "\n")
    return outcomes


def outcome_of(process: multiprocessing.process.BaseProcess, limit: float) -> str:
    """Run a process and return how it ended: done, failed, or killed after `limit` seconds."""
    process.start()
    process.join(limit)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]  # also kills what it started
        except ProcessLookupError:  # it has not reached `work` yet, where its group begins
            process.kill()
        process.join()
        return f"ended after {limit:.0f} s"
    return "done" if process.exitcode == 0 else f"failed with exit code {process.exitcode}"


def work(part: Part, folder: Path) -> None:
    """Run a part in the current process, which gets a process group of its own."""
    os.setsid()
    if part.command is None:
        sys.exit(run_tests(folder))
    words = part.command.split()
    sys.argv[1:] = words  # provenance takes the command from here
    if words[0] != "ablation":
        sys.exit(call(MEASURES, [*words, "--output_dir", str(folder), "--name", part.name]))
    study = Path("playground/ablation/gpu")
    if code := call(MEASURES, [*words, "--output_dir", str(study)]):
        sys.exit(code)
    for suffix in ("json", "md"):
        shutil.copy(study / f"results.{suffix}", folder / f"{part.name}.{suffix}")


def run_tests(folder: Path) -> int:
    """Run tests/gpu in eight processes, which share the GPU; write the counts to tests.json and tests.md."""
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-n", "8", "--dist", "loadgroup", f"--junitxml={report}"]
    code = subprocess.run(command, cwd=ROOT).returncode
    if report.is_file():
        counts = count_tests(report.read_text())
        report.unlink()
        failed, skipped = counts["failed"], counts["skipped"]
        names = "".join(f"- {kind}: {name}\n" for kind in ("failed", "skipped") for name in counts[kind])
        passed = f"{counts['passed']} passed, {len(failed)} failed, {len(skipped)} skipped"
        write(folder, "tests", counts, f"`bash scripts/test.sh -m gpu`: {passed}.\n\n{names}")
    return code
