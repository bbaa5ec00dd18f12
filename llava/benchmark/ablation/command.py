"""Train and score a grid of projectors on PrismVQA by one recipe, and print the tables."""

import argparse
import logging
from pathlib import Path

from llava.benchmark.timing import check_place, provenance, write
from llava.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, help="the study, YAML; scripts/ablation/ has some")
    add("--output_dir", type=Path, help="results; default: playground/ablation/ and the file's name")
    add("--devices", help="such as cuda:0,cuda:1 or cpu; default: all GPUs, or a process per CPU thread")
    add("--report_only", action="store_true", help="print the tables of what is done, run nothing")
    add(
        "--docs",
        type=Path,
        help="the page docs/ablation.md: keep the results in results/ablation beside it, and put the tables "
        "of all files there on it; without --config nothing is run",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the study, print the tables, and write results.md and results.json; fill the page of --docs.

    Raises UserError if neither a study nor a page is named.
    """
    from llava.benchmark.ablation.pages import fill_page, keep_result, place_of, text_of

    if args.config is None:
        if args.docs is None:
            raise UserError("--config is missing: name a study of scripts/ablation, or a page by --docs.")
        fill_page(args.docs)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = args.config.stem
    check_place(args.docs, place_of(name))
    output_dir = args.output_dir or Path("playground/ablation") / name
    content = conclude(args, output_dir)
    write(output_dir, "results", content, text_of(content))
    if args.docs is not None:
        keep_result(args.docs, name, content)
        fill_page(args.docs)
    print(text_of(content))


def conclude(args: argparse.Namespace, output_dir: Path) -> dict:
    """Do what is to be done, and return the results, their tables and their provenance as JSON values."""
    from llava.benchmark.ablation.rates import search_of, with_best_rates
    from llava.benchmark.ablation.settings import Study, read_study
    from llava.benchmark.ablation.study import conduct, results_so_far
    from llava.benchmark.ablation.tables import collect

    study = read_study(args.config)
    devices = args.devices.split(",") if args.devices else visible_devices(study)

    def done(part: Study) -> list[dict]:
        return results_so_far(part, output_dir) if args.report_only else conduct(part, output_dir, devices)

    parts = []
    if study.rates:
        search = search_of(study)
        parts.append((search, done(search)))
        study = with_best_rates(study, parts[0][1])
    parts.append((study, done(study)))
    collected = [collect(*part) for part in parts]
    return {
        **provenance(devices[0], "bfloat16"),
        "runs_at_once": len(devices),
        "score_on": study.data.score_on,
        "tables": [one for each in collected for one in each["tables"]],
        "missing": [name for each in collected for name in each["missing"]],
        "results": [result for _, results in parts for result in results],
    }


def visible_devices(study) -> list[str]:
    """The devices, with a process for each: all GPUs, or else "cpu" once for each of torch's threads.

    On a CPU, small readers use several threads badly. A language model would be copied in each process, so
    that it gets one process with all threads.
    """
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return gpus or ["cpu"] * (torch.get_num_threads() if study.reader.path is None else 1)
