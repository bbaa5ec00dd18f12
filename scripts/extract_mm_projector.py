"""Take the projector out of a trained model: mm_projector.bin, as stage 1 writes it.

    python scripts/extract_mm_projector.py --model-path playground/checkpoints/llava-visualprism \
        --output playground/checkpoints/projector

Only the shards that hold weights of the projector are opened, and no other weights are read.
"""

import sys
from pathlib import Path

from llava.command import Parser, message
from llava.errors import UserError
from llava.inference import add_flags
from llava.wholefile import whole_file


def extract(model_path: str, output: Path) -> Path:
    """Write the projector; returns its file.

    Args:
        model_path: a whole model, in one file or in shards, or LoRA's folder.
        output: a file whose name ends in .bin, or a folder. A folder also gets config.json, so that it can
            be loaded together with its language model.
    Raises:
        UserError: if there is no projector.
    """
    import torch

    from llava.model.checkpoint import PROJECTOR_FILE, PROJECTOR_PREFIX, is_of_projector
    from llava.model.files import read_weights
    from llava.model.plan import Kind, plan_checkpoint

    plan = plan_checkpoint(model_path)
    if plan.kind is Kind.ADAPTERS:
        state = {key: value for key, value in plan.learned.items() if is_of_projector(key)}
    else:
        names = {name for name in plan.weights if is_of_projector(name)}
        state = read_weights(plan.path, names) if names else {}
    if not state:
        raise UserError(f"--model-path {model_path} contains no projector (*.{PROJECTOR_PREFIX}*).")
    is_file = output.suffix == ".bin"
    file = output if is_file else output / PROJECTOR_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    if not is_file:
        (output / "config.json").write_bytes((plan.path / "config.json").read_bytes())
    with whole_file(file) as scratch:
        torch.save(state, scratch)
    return file


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add_flags(parser, "--model-path")
    parser.add_argument("--output", type=Path, required=True, help=".bin file or folder to write")
    options = parser.parse_args(arguments)
    try:
        file = extract(options.model_path, options.output)
    except UserError as error:
        sys.exit(message(error, "extract_mm_projector"))
    print(f"{file}: written")


if __name__ == "__main__":
    main()
