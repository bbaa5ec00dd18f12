"""Train and score a grid of projectors on PrismVQA by one recipe, and print the tables."""

import argparse
import logging
from pathlib import Path

from llava.benchmark.timing import check_place, headline, paste, provenance, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the study; scripts/ablation/ contains some")
    add("--output_dir", type=Path, help="folder for results; default: playground/ablation/NAME for NAME.yaml")
    add(
        "--devices",
        help="devices, for example cuda:0,cuda:1 or cpu; default: all GPUs, or one process per CPU thread",
    )
    add("--report_only", action="store_true", help="only print the tables of the finished runs")
    add(
        "--docs",
        type=Path,
        help="page with a place for the tables of this study, into which they are written",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the study, print the tables, and write results.md and results.json."""
    from llava.benchmark.ablation.settings import read_study
    from llava.benchmark.ablation.study import conduct, results_so_far
    from llava.benchmark.ablation.tables import as_markdown

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = read_study(args.config)
    place = f"ablation_{args.config.stem}"
    check_place(args.docs, place)
    output_dir = args.output_dir or Path("playground/ablation") / args.config.stem
    devices = args.devices.split(",") if args.devices else visible_devices(study)
    results = results_so_far(study, output_dir) if args.report_only else conduct(study, output_dir, devices)
    about = provenance(devices[0], "bfloat16")
    at_once = f", {len(devices)} runs at the same time" if len(devices) > 1 else ""
    head = f"{headline(about)}{at_once}. "
    head += f"Accuracy in per cent on {study.data.score_on} scenes; ± is the 95% interval over seeds.\n\n"
    tables = head + as_markdown(study, results)
    write(output_dir, "results", {**about, "results": results}, tables)
    if args.docs is not None:
        paste(args.docs, place, tables)
    print(tables)


def visible_devices(study) -> list[str]:
    """The devices, with a process for each: all GPUs, or else "cpu" once for each of torch's threads.

    On a CPU, small readers use several threads badly. A language model would be copied in each process, so
    that it gets one process with all threads.
    """
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return gpus or ["cpu"] * (torch.get_num_threads() if study.reader.path is None else 1)
