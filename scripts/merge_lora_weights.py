"""Merge LoRA's adapters, and weights trained with them, into their base model, as one complete folder.

    python scripts/merge_lora_weights.py --model-path playground/checkpoints/llava-visualprism-lora \
        --model-base lmsys/vicuna-7b-v1.5 --save-model-path playground/checkpoints/llava-visualprism-merged

The weights keep the dtype of the base. The merge needs memory for one copy of the model.
"""

import sys
from pathlib import Path

from output_folder import write_folder

from llava.command import Parser, message
from llava.errors import UserError
from llava.inference import add_flags, load_model
from llava.quiet import quiet_libraries

REQUIRED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")


def merge(model_path: str, model_base: str | None, output: Path) -> bool:
    """Write the folder; returns False when it was already complete.

    Raises UserError if model_path holds no adapters, the base is not found, or weights do not fit.
    """
    return write_folder(output, REQUIRED, lambda folder: _write(model_path, model_base, folder))


def _write(model_path: str, model_base: str | None, folder: Path) -> None:
    from llava.chat_template import chat_template
    from llava.decoding import end_with_turns
    from llava.model.checkpoint import ADAPTER_CONFIG
    from llava.model.plan import Kind, plan_checkpoint

    plan = plan_checkpoint(model_path)
    if plan.kind is not Kind.ADAPTERS:
        raise UserError(f"--model-path {model_path} has no {ADAPTER_CONFIG}; there is nothing to merge.")
    loaded = load_model(plan, model_base, device="cpu", torch_dtype="auto")
    model, tokenizer = loaded.model, loaded.tokenizer
    end_with_turns(model, tokenizer, loaded.template)
    tokenizer.chat_template = chat_template(loaded.template, model.config.mm_use_im_start_end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded.image_processor.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add_flags(parser, "--model-path", "--model-base")
    parser.add_argument("--save-model-path", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        written = merge(options.model_path, options.model_base, options.save_model_path)
    except UserError as error:
        sys.exit(message(error, "merge_lora_weights"))
    print(f"{options.save_model_path}: {'written' if written else 'already complete'}")


if __name__ == "__main__":
    main()
