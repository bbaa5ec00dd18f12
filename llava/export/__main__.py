"""Write a model's folder as transformers, vLLM and others load it, or the way back.

python -m llava.export playground/checkpoints/llava-v1.5-7b playground/exported
python -m llava.export playground/checkpoints/lora playground/exported --model-base lmsys/vicuna-7b-v1.5
"""

import sys
from pathlib import Path

from llava.command import Parser, exit_code
from llava.inference import add_flags


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m llava.export", description=__doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="folder or hub name of a model, a projector or adapters"
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="folder to write; new or empty")
    add_flags(parser, "--model-base")
    args = parser.parse_args(arguments)

    def run() -> None:
        from llava.export.folder import export

        source = export(args.model, args.output, args.model_base)
        print(f"{args.output}: written from {source.plan.path}")

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
