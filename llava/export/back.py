"""Converts an exported folder back to our own layout."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import llava.hf  # registers its classes
from llava.chat_template import chat_template
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import template_of
from llava.errors import UserError
from llava.export.folder import SOURCE_CONFIG, whole_folder
from llava.export.stock import IMAGE_OPTIONS
from llava.export.weights import our_name, stored_shards, without_rows, write_shards
from llava.model.files import read_json
from llava.model.language_model.builder import config_of
from llava.model.plan import find_folder
from llava.model.tokenizer import load_tokenizer


def restore(model: str, folder: Path) -> None:
    """Write an exported folder, or what transformers has saved from one since, in our own layout.

    The weights keep every bit, and config.json is the one that was exported.

    Raises:
        UserError: if the folder does not come from llava.export, or as whole_folder does.
    """
    path = find_folder(model, "MODEL")
    exported = read_json(path / "config.json")
    saved = exported.get(SOURCE_CONFIG)
    if saved is None:
        raise UserError(f"{path} is not an exported folder: its config.json has no {SOURCE_CONFIG}.")
    config = config_of(saved, path / "config.json")
    is_stock = exported["model_type"] != llava.hf.VisualPrismConfig.model_type

    def renamed(name: str, value: Tensor) -> tuple[str, Tensor]:
        return our_name(name, is_stock), without_rows(name, value, config.vocab_size)

    with whole_folder(folder) as scratch:
        write_shards(stored_shards(path), renamed, scratch)
        (scratch / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
        if (path / "generation_config.json").is_file():
            (scratch / "generation_config.json").write_text((path / "generation_config.json").read_text())
        tokenizer = without_image_token(load_tokenizer(path, padding_side="left"))
        tokenizer.chat_template = chat_template(template_of(config), config.mm_use_im_start_end)
        tokenizer.save_pretrained(scratch)
        images = AutoImageProcessor.from_pretrained(path, backend="pil")
        options = {name: getattr(images, name) for name in (*IMAGE_OPTIONS, "do_center_crop", "crop_size")}
        CLIPImageProcessorPil(**options).save_pretrained(scratch)


def without_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer as it was before <image> was added; in our own layout <image> is not a token."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in backend["added_tokens"] if token["content"] != DEFAULT_IMAGE_TOKEN]
    backend["added_tokens"] = kept
    marks = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        padding_side=tokenizer.padding_side,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **marks,
    )
