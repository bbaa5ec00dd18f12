"""Make PrismVQA, a rendered benchmark: pictures, training conversations and test questions."""

import argparse
from pathlib import Path

from llava.command import Parser, exit_code


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.benchmark.prismvqa", description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("playground/data/prismvqa"), help="folder to write")
    add("--num_train", type=int, default=50_000, help="number of scenes for training")
    add("--num_test", type=int, default=5_000, help="number of scenes for the test")
    add("--size", type=int, default=336, help="side of the pictures in pixels")
    add("--seed", type=int, default=0, help="seed of scenes, questions and pictures")
    add("--rounds", type=int, default=1, help="questions of each family for a training scene")
    add("--workers", type=int, help="number of processes; default: the number of cores")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--preview",
        type=Path,
        metavar="FILE.png",
        help="only draw a dozen scenes with questions into this file",
    )
    instead.add_argument(
        "--question_only",
        action="store_true",
        help="only print the accuracy that is reached without the pictures",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Do what the flags say. Raises UserError for mistakes that the user can correct."""
    if args.preview:
        from llava.benchmark.prismvqa.preview import write_preview

        write_preview(args.preview, seed=args.seed, size=args.size)
        print(f"preview: {args.preview}")
        return
    from llava.benchmark.prismvqa import dataset

    if args.question_only:
        from llava.benchmark.prismvqa.question_only import score_blind, table

        numbers = (("train", args.num_train), ("test", args.num_test))
        print(table(score_blind(*(dataset.ask_split(*it, args.seed, args.workers) for it in numbers))))
        return
    names = ("num_train", "num_test", "size", "seed", "rounds", "workers")
    numbers = {name: getattr(args, name) for name in names}
    written = dataset.write_dataset(args.output_dir, **numbers)
    print(f"{args.output_dir}: {'written' if written else 'already complete'}")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: run(parse_args())))
