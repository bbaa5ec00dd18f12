"""python -m llava.benchmark projectors, packing, loss, capture: what each choice costs, side by side."""

import argparse

from llava.benchmark import capture, loss, packing, projectors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava.benchmark", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    projectors.add_arguments(commands.add_parser("projectors", help=projectors.__doc__.splitlines()[0]))
    packing.add_arguments(commands.add_parser("packing", help=packing.__doc__.splitlines()[0]))
    loss.add_arguments(commands.add_parser("loss", help=loss.__doc__.splitlines()[0]))
    capture.add_arguments(commands.add_parser("capture", help=capture.__doc__.splitlines()[0]))
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
