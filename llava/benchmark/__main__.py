"""python -m llava.benchmark projectors, packing, ...: what each choice costs and gives, side by side."""

import argparse

from llava.benchmark import loss, packing, projectors
from llava.benchmark.ablation import command as ablation
from llava.command import exit_code


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llava.benchmark", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    projectors.add_arguments(commands.add_parser("projectors", help=projectors.__doc__.splitlines()[0]))
    packing.add_arguments(commands.add_parser("packing", help=packing.__doc__.splitlines()[0]))
    loss.add_arguments(commands.add_parser("loss", help=loss.__doc__.splitlines()[0]))
    ablation.add_arguments(commands.add_parser("ablation", help=ablation.__doc__.splitlines()[0]))
    args = parser.parse_args(argv)
    return exit_code(lambda: args.run(args))


if __name__ == "__main__":
    raise SystemExit(main())
