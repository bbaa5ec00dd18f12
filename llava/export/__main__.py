"""Export a model to a folder that transformers, vLLM and others load, or convert such a folder back.

python -m llava.export playground/checkpoints/llava-v1.5-7b playground/exported
python -m llava.export playground/checkpoints/lora playground/exported --model-base lmsys/vicuna-7b-v1.5
"""

import sys
from argparse import Namespace
from pathlib import Path

from llava.command import Parser, exit_code
from llava.errors import UserError
from llava.inference import add_flags


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m llava.export", description=__doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="folder or hub name of a model, a projector or adapters"
    )
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="folder to write to; it must be new or empty"
    )
    add_flags(parser, "--model-base")
    parser.add_argument(
        "--target",
        choices=("transformers", "llava"),
        default="transformers",
        help="transformers: export a trained model; llava: convert an exported folder back to the layout of "
        "training",
    )
    parser.add_argument(
        "--with_code",
        action="store_true",
        help="write the code of the classes into OUT too; without this package, OUT then loads with "
        "trust_remote_code=True",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="repository of the hub to upload OUT to")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args))


def run(args: Namespace) -> None:
    """Export or convert back. Raises UserError as export, restore and push do, or if flags contradict."""
    from llava.export.back import restore
    from llava.export.folder import export
    from llava.export.hub import push

    if args.target == "llava":
        if args.model_base or args.push or args.with_code:
            raise UserError(
                "--model-base, --push and --with_code have no effect with --target llava; leave them out."
            )
        restore(args.model, args.output)
    else:
        source = export(args.model, args.output, args.model_base, args.push, args.with_code)
        if args.with_code and source.stock:
            print(f"{args.output}: its class is part of transformers, so no code was written")
    print(f"{args.output}: written from {args.model}")
    if args.push:
        print(push(args.output, args.push))


if __name__ == "__main__":
    sys.exit(main())
