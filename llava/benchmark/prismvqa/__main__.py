"""Make PrismVQA, a rendered benchmark: pictures, training conversations and test questions."""

import argparse
from pathlib import Path

from llava.command import Parser, exit_code


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.benchmark.prismvqa", description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("playground/data/prismvqa"), help="folder to make")
    add("--num_train", type=int, default=50_000, help="scenes to train on")
    add("--num_test", type=int, default=5_000, help="scenes to test on")
    add("--size", type=int, default=336, help="side of the pictures, pixels")
    add("--seed", type=int, default=0, help="of everything")
    add("--rounds", type=int, default=1, help="questions of each family that a training scene is asked")
    add("--workers", type=int, help="processes; as many as cores if not given")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--preview", type=Path, metavar="FILE.png", help="draw a dozen scenes with questions there instead"
    )
    instead.add_argument(
        "--question_only",
        action="store_true",
        help="print instead what can be guessed from the questions alone, without drawing",
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
