"""Train and score a grid of projectors on PrismVQA by one recipe, and print the tables."""

import argparse
import json
import logging
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, required=True, help="the study, YAML; scripts/ablation/ has some")
    add("--output_dir", type=Path, help="results; default: playground/ablation/ and the file's name")
    add("--devices", help="such as cuda:0,cuda:1 or cpu; default: all GPUs, or cpu where there is none")
    add("--report_only", action="store_true", help="print the tables of what is done, run nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Do the study; print the tables, and write results.md and results.json."""
    import torch

    from llava.benchmark.ablation.settings import read_study
    from llava.benchmark.ablation.study import conduct, results_so_far
    from llava.benchmark.ablation.tables import as_markdown

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = read_study(args.config)
    output_dir = args.output_dir or Path("playground/ablation") / args.config.stem
    devices = args.devices.split(",") if args.devices else visible_devices()
    results = results_so_far(study, output_dir) if args.report_only else conduct(study, output_dir, devices)
    if devices[0].startswith("cuda"):
        machine = f"{len(devices)} x {torch.cuda.get_device_name(devices[0])}"
    else:
        machine = f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    about = {
        "command": shlex.join(["python", "-m", "llava.benchmark", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine,
        "torch": torch.__version__,
    }
    head = f"`{about['command']}`, {about['date']}: {machine}, torch {about['torch']}. Accuracy in per cent"
    head += f", {study.data.score_on} scenes; ± is the 95% interval over seeds.\n\n"
    tables = head + as_markdown(study, results)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.md").write_text(tables)
    (output_dir / "results.json").write_text(json.dumps({**about, "results": results}, indent=1))
    print(tables)


def visible_devices() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
