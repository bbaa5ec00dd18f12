"""Writes an exported folder, completely or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AddedToken, GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast

from llava.chat_template import Marks, chat_template
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, template_of
from llava.decoding import end_with_turns
from llava.errors import UserError
from llava.export.card import NATIVE, STOCK, WITH_CODE, model_card
from llava.export.code import add_code
from llava.export.native import native_config, native_processor
from llava.export.stock import is_stock, stock_config, stock_processor
from llava.export.weights import (
    TOWER,
    Shard,
    exported_name,
    shards_of,
    stored_shards,
    with_rows,
    write_shards,
)
from llava.model.builder import SAVED_CONSTANTS, load_pretrained_model
from llava.model.language_model.llava_mpt import LlavaMptConfig
from llava.model.llava_arch import SAMPLING
from llava.model.multimodal_encoder.builder import (
    VISION_TOWERS,
    build_vision_tower,
    load_image_processor,
    load_vision_weights,
)
from llava.model.plan import CheckpointPlan, Kind, plan_checkpoint
from llava.model.tokenizer import load_tokenizer
from llava.model.vision_config import CommonFields
from llava.wholefile import sync

SOURCE_CONFIG = "llava_config"  # the key that keeps our own config.json, for the way back
ROUNDED = 64  # the vocabulary's rows are a multiple of it, so that engines can split them
NUM_NAMED = 10  # the most weights that a message lists
IDLE = "mask_token"  # of DINOv2; only its own training reads it


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` when the block ends and is removed if the block fails.

    Raises:
        UserError: if `folder` exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; remove it or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.absolute().with_name(f".{folder.name}.{os.getpid()}")
    scratch.mkdir()
    try:
        yield scratch
        for path in (*scratch.rglob("*"), scratch):
            sync(path)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync(folder.absolute().parent)


@dataclass
class Source:
    """A model of ours that is to be exported.

    Attributes:
        plan: the plan of its folder.
        saved: the content of its config.json.
        config: the configuration of the whole model, with mm_vision_config.
        shards: its weights, by our names.
        tokenizer: its tokenizer, with <image> added as a token.
    """

    plan: CheckpointPlan
    saved: dict
    config: PretrainedConfig
    shards: list[Shard]
    tokenizer: PreTrainedTokenizerFast

    def __post_init__(self):
        mark = AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=False)
        self.tokenizer.add_tokens([mark], special_tokens=True)

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)

    @property
    def num_rows(self) -> int:
        """The number of rows of the exported vocabulary."""
        needed = max(self.config.vocab_size, self.image_token_id + 1)
        return -(-needed // ROUNDED) * ROUNDED

    @cached_property
    def stock(self) -> bool:
        """Whether transformers has a class for it."""
        return is_stock(self.config)

    @property
    def template(self) -> Conversation:
        return template_of(self.config)

    @property
    def text_config(self) -> PretrainedConfig:
        """The configuration of the language model only, of transformers' own class."""
        kind = next(kind for kind in type(self.config).__mro__ if not issubclass(kind, CommonFields))
        names = kind.__dataclass_fields__.keys() - {"architectures", "transformers_version"}  # type: ignore[attr-defined]
        settings = {name: getattr(self.config, name) for name in names}
        return kind(**settings | {"vocab_size": self.num_rows})  # type: ignore[call-arg]

    @property
    def vision_config(self) -> PretrainedConfig:
        kind = VISION_TOWERS[self.config.mm_vision_config["model_type"]]
        return kind.config_class.from_dict(self.config.mm_vision_config)

    def image_processor(self):
        own = self.plan.path if self.plan.has_image_processor else None
        side = self.config.mm_vision_image_size or self.config.mm_vision_config["image_size"]
        return load_image_processor(str(own or self.config.mm_vision_tower), side)

    def chat_template(self) -> str:
        return chat_template(self.template, self.config.mm_use_im_start_end, Marks.of(self.tokenizer))

    def generation_config(self) -> GenerationConfig:
        """The folder's own settings, in which the end of the template's turns ends an answer."""
        if (self.plan.path / "generation_config.json").is_file():
            settings = GenerationConfig.from_pretrained(self.plan.path)
        else:
            settings = GenerationConfig.from_model_config(self.config)
        end_with_turns(SimpleNamespace(generation_config=settings), self.tokenizer, self.template)
        if not settings.do_sample:  # SAMPLING has no effect then and is refused
            for name in SAMPLING:
                setattr(settings, name, None)
        return settings


def open_source(model: str, model_base: str | None = None) -> Source:
    """Find a model and its weights; a whole model's stay in their files.

    Raises:
        UserError: as load_pretrained_model does, or if the model is text-only or an MPT, which no serving
            engine runs.
    """
    plan = plan_checkpoint(model, "MODEL")
    if "text_config" in plan.saved:
        raise UserError(
            f"{plan.path} was not written by training: its config.json has a text_config. If it was "
            "exported, give the folder that it was exported from, or convert it back with --target llava."
        )
    if not plan.sees:
        raise UserError(f"{plan.path} is text-only; transformers and vLLM load it as it is.")
    if isinstance(plan.config, LlavaMptConfig):
        raise UserError(
            f"{plan.path} is an MPT, and transformers' MPT class does not work in a serving engine; "
            "serve it with python -m llava.serve.api."
        )
    if plan.kind is Kind.MODEL:
        return whole_model(plan)
    tokenizer, loaded, *_ = load_pretrained_model(plan, model_base, device="cpu", torch_dtype="auto")
    saved = json.loads(loaded.config.to_json_string())
    return Source(plan, saved, loaded.config, shards_of(loaded.state_dict()), tokenizer)


def whole_model(plan: CheckpointPlan) -> Source:
    """The source for a whole model's folder; if the tower is stored elsewhere, it is one more shard.

    Raises:
        UserError: if weights are missing or unexpected.
    """
    config, shards = copy.deepcopy(plan.config), stored_shards(plan.path)
    with torch.device("meta"):
        needed = set(plan.model_class._from_config(config).state_dict())
    if config.tie_word_embeddings:
        needed -= {"lm_head.weight"}
    found = {name.replace(f"{TOWER}vision_model.", TOWER) for name in plan.weights}
    missing = {name for name in needed - found if not name.endswith(IDLE)}
    if any(name.startswith(TOWER) for name in missing):
        shards.append(lambda: published_tower(config))
        missing = {name for name in missing if not name.startswith(TOWER)}
    unexpected = {name for name in found - needed if not name.endswith((*SAVED_CONSTANTS, "lm_head.weight"))}
    problems = [f"missing {name}" for name in sorted(missing)]
    problems += [f"unexpected {name}" for name in sorted(unexpected)]
    if problems:
        raise UserError(f"{plan.path} does not fit its config.json: {'; '.join(problems[:NUM_NAMED])}.")
    return Source(plan, plan.saved, config, shards, load_tokenizer(plan.path, padding_side="left"))


def published_tower(config: PretrainedConfig) -> dict[str, Tensor]:
    """The weights of the tower that mm_vision_tower names, by our names, in the model's dtype."""
    tower = build_vision_tower(config, needs_levels=False)
    load_vision_weights(tower, config.mm_vision_tower)
    dtype = config.dtype or torch.float32
    return {TOWER + name: value.to(dtype) for name, value in tower.vision_tower.state_dict().items()}


def export(
    model: str,
    folder: Path,
    model_base: str | None = None,
    name: str | None = None,
    with_code: bool = False,
) -> Source:
    """Write a folder that transformers loads.

    Args:
        model, model_base: as load_pretrained_model takes them.
        name: the model's name in the model card, such as its repository's; by default the folder's.
        with_code: put our classes' code into the folder, unless transformers has a class for the model.
    Raises:
        UserError: as open_source and whole_folder do.
    """
    with whole_folder(folder) as scratch:
        source = open_source(model, model_base)
        write_source(source, scratch, name or folder.name, with_code and not source.stock)
    return source


def write_source(source: Source, folder: Path, name: str, with_code: bool) -> None:
    """Write all files of an export into an empty folder."""
    own, tokenizer, mark = source.config, source.tokenizer, source.image_token_id
    images, template = source.image_processor(), source.chat_template()
    if source.stock:
        config = stock_config(own, source.text_config, source.vision_config, mark)
        processor = stock_processor(own, images, tokenizer, template)
        num_tokens = config.image_seq_length
    else:
        config = native_config(own, source.text_config, source.vision_config, tokenizer, mark)
        processor = native_processor(config, images, tokenizer, template)
        num_tokens = processor.image_processor.num_view_tokens()
    known = sorted(set(tokenizer.get_vocab().values()) - {mark})

    def renamed(name: str, value: Tensor) -> tuple[str | None, Tensor]:
        return exported_name(name, source.stock), with_rows(name, value, source.num_rows, known)

    write_shards(source.shards, renamed, folder)
    config.dtype = own.dtype
    setattr(config, SOURCE_CONFIG, source.saved)
    config.save_pretrained(folder)
    source.generation_config().save_pretrained(folder)
    processor.save_pretrained(folder)
    if with_code:
        add_code(folder)
    loading = STOCK if source.stock else WITH_CODE if with_code else NATIVE
    card = model_card(own, source.plan.path, processor, num_tokens, name, loading)
    (folder / "README.md").write_text(card, encoding="utf-8")
