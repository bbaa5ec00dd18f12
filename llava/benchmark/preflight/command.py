"""Whether this machine is ready for a training script, and how long the run will take: one page.

Each check runs in its own process with a time limit, so that no failing check can stop the others. The
script's own variables (MODEL, DATA_PATH, BATCH_SIZE, ...) decide what is checked. No output of the run itself
is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from llava.benchmark.preflight.checks import CHECKS, WORK
from llava.errors import UserError
from llava.wholefile import write_text

ROOT = Path(__file__).parents[3]
ENTRY = "llava/train/train_mem.py"
DECIDED = {  # flags that depend on the GPU memory, unless a variable sets them
    "DEEPSPEED_CONFIG": ("--deepspeed",),
    "GRADIENT_CHECKPOINTING": ("--gradient_checkpointing", "--recompute_above"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    script: dict = {"dest": "script", "default": "v1_5/finetune", "metavar": "SCRIPT"}
    add("--for", **script, help="training script below scripts/")
    add(
        "--skip",
        nargs="+",
        default=[],
        metavar="CHECK",
        help="checks to leave out, for example steps, data, disk or deepspeed",
    )
    add("--gpus", type=int, help="forecast the memory for this many GPUs, not for those of this machine")
    add("--gpu_memory_gib", type=float, help="memory of one of these GPUs")
    add(
        "--output_dir",
        type=Path,
        default=Path("playground/preflight"),
        help="folder for preflight.json and .md",
    )
    add("flags", nargs="*", metavar="-- FLAGS", help="flags of train_mem.py, as after the script's name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the checks, print the page, and write preflight.json and preflight.md."""
    from llava.benchmark.preflight.page import as_markdown

    if unknown := set(args.skip) - set(CHECKS):
        raise UserError(
            f"--skip {' '.join(sorted(unknown))}: unknown check; choose from {', '.join(CHECKS)}."
        )
    request, command = read_script(args)
    results = {
        "script": args.script,
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "checks": {},
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, (_, limit) in CHECKS.items():
        if name in args.skip:
            continue
        print(f"{name} ...", file=sys.stderr, end=" ", flush=True)
        start = time.monotonic()
        results["checks"][name] = check(name, request, limit, args.output_dir / f"{name}.log")
        problem = results["checks"][name].get("problem", "").split("\n")[0]  # the page shows all lines
        print(f"{time.monotonic() - start:.0f} s {problem}", file=sys.stderr)
        write_text(args.output_dir / "preflight.json", json.dumps(results, indent=1) + "\n")
    text = as_markdown(results)
    write_text(args.output_dir / "preflight.md", text)
    print(text)


def read_script(args: argparse.Namespace) -> tuple[dict, str]:
    """Ask the script itself what it would start; return the request for the checks, and the command line.

    Raises UserError if there is no such script, or if the script rejects its variables.
    """
    script = ROOT / "scripts" / f"{args.script.removesuffix('.sh')}.sh"
    if not script.is_file() or "launch.sh" not in script.read_text():
        raise UserError(
            f"--for {args.script}: the training script {script.relative_to(ROOT)} does not exist."
        )
    done = subprocess.run(
        ["bash", script, *args.flags], env={**os.environ, "DRY_RUN": "1"}, capture_output=True, text=True
    )
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode or ENTRY not in last:
        said = done.stderr.strip().splitlines() or ["it starts no training"]
        raise UserError(f"--for {args.script}: {said[-1].removeprefix('error: ')}")
    words = shlex.split(last)
    entry = next(place for place, word in enumerate(words) if word.endswith(ENTRY))
    flags = words[entry + 1 :]
    num_devices = re.search(r" a device x (\d+) devices", done.stdout)
    assert num_devices is not None, done.stdout
    if args.gpu_memory_gib and not {"--bf16", "--fp16"} & set(flags):
        flags += ["--bf16", "True"]
    automatic = [names for name, names in DECIDED.items() if os.environ.get(name, "auto") == "auto"]
    request = {
        "launcher": words[:entry],
        "flags": flags,
        "num_devices": args.gpus or int(num_devices[1]),
        "gpu_memory_mib": round(args.gpu_memory_gib * 1024) if args.gpu_memory_gib else None,
        "decided": [flag for names in automatic for flag in names],
    }
    return request, last


def check(name: str, request: dict, limit: float, log: Path) -> dict:
    """Run a check and return its figures or its problem; all processes that it started are killed at its end.

    Args:
        limit: seconds that the check may take.
        log: file for the check's output, which is kept if there is a problem.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, WORK, "check", name, json.dumps(request), str(result)]
        with log.open("w") as written:
            process = subprocess.Popen(
                command,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # without the hub, since what a run needs should be here before it starts
                env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ},
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                return {"problem": f"it was stopped after {limit:.0f} s; {log} has its output"}
            finally:
                kill_group(process)
        if result.is_file():
            outcome = json.loads(result.read_text())
            if "figures" in outcome:
                log.unlink()
            return outcome
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[:300] if lines else f"its process ended with {process.returncode}"
    return {"problem": f"{last} ({log} has all its output)"}


def kill_group(process: subprocess.Popen) -> None:
    """Kill the process and all that it has started and left running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
