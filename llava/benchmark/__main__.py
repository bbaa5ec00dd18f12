"""python -m llava.benchmark projectors, packing, loss, speed, step: what each choice costs, in one run."""

import argparse
import sys

from llava.benchmark import loss, packing, projectors
from llava.benchmark.speed import command as speed
from llava.benchmark.speed import training as step
from llava.command import exit_code


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava.benchmark", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    projectors.add_arguments(commands.add_parser("projectors", help=projectors.__doc__.splitlines()[0]))
    packing.add_arguments(commands.add_parser("packing", help=packing.__doc__.splitlines()[0]))
    loss.add_arguments(commands.add_parser("loss", help=loss.__doc__.splitlines()[0]))
    speed.add_arguments(commands.add_parser("speed", help=speed.__doc__.splitlines()[0]))
    step.add_arguments(commands.add_parser("step", help=step.__doc__.splitlines()[0]))
    args = parser.parse_args(argv)
    if code := exit_code(lambda: args.run(args)):
        sys.exit(code)


if __name__ == "__main__":
    main()
