"""Random models of a shape, made on their device in their dtype; transformers' LLaVA with equal weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlavaConfig as TheirConfig
from transformers import LlavaForConditionalGeneration

from llava.benchmark.speed.shapes import IMAGE_SIZE, Shape
from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.language_model.builder import MODEL_CLASSES
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.builder import build_projector, projector_class
from llava.model.vision_config import plain_type

UNCOMPRESSED = "mlp2x_gelu"
TEXT_BEFORE_IMAGE = 4  # tokens; the rest of the prompt's text follows the image


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """A context that makes tensors on the device and in the dtype, without a float32 copy on the host."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build_model(shape: Shape, device: str, dtype: torch.dtype):
    """Our model in evaluation mode, with the uncompressed projector."""
    model_class = MODEL_CLASSES[shape.family]
    config = model_class.config_class(
        **shape.language_config(),
        mm_vision_tower=shape.name,
        mm_vision_config=dict(shape.tower),
        mm_vision_image_size=IMAGE_SIZE,
        mm_projector_type=UNCOMPRESSED,
        image_aspect_ratio="square",
    )
    torch.manual_seed(0)
    with made_on(device, dtype):
        model = model_class(config).eval()
    model.generation_config.eos_token_id = None  # else random models may end early; lengths must be equal
    return model


@dataclass(frozen=True)
class Variant:
    """A projector and its s (None if it does not compress) for one language model."""

    name: str
    scale_factor: int | None
    projector: Projector

    def put_into(self, model) -> None:
        """Make it the model's projector; the tower then gives what it needs, and runs no deeper."""
        model.get_model().mm_projector = self.projector
        tower = model.get_vision_tower()
        tower.needs_levels, tower.needs_attention = self.projector.needs_levels, False
        model.config.mm_projector_type = self.name
        model.config.scale_factor = self.scale_factor or 1

    def num_tokens(self, model) -> int:
        """Visual tokens of an image."""
        return self.projector.num_tokens(model.get_vision_tower().num_patches, self.scale_factor)


def build_variants(model, names: list[str], scale_factors: list[int], dtype: torch.dtype) -> list[Variant]:
    """The uncompressed projector, then each name at each s.

    Raises UserError for a type that does not compress; types that prune are among them.
    """
    variants = [Variant(UNCOMPRESSED, None, model.get_projector())]
    for name in names:
        if not projector_class(name).compresses:
            raise UserError(
                f"--projectors must be types that compress, got {name!r}; {UNCOMPRESSED} is always "
                "measured too."
            )
        for scale_factor in scale_factors:
            model.config.mm_projector_type, model.config.scale_factor = name, scale_factor
            with made_on(str(model.device), dtype):
                projector = build_projector(model.config, model.config.hidden_size)
            variants.append(Variant(name, scale_factor, projector.eval()))
    variants[0].put_into(model)
    return variants


def build_theirs(model) -> LlavaForConditionalGeneration:
    """transformers' own LLaVA with the tensors of our model, so that it needs no memory and answers alike."""
    image_token = model.config.vocab_size - 1
    config = TheirConfig(
        vision_config=model.get_vision_tower().config.to_dict(),
        text_config={**model.config.to_dict(), "model_type": plain_type(type(model.config))},
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config).eval()
    ours = {_their_name(name): tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict(ours, assign=True)
    _share_buffers(theirs, {_their_name(name): buffer for name, buffer in model.named_buffers()})
    theirs.generation_config.eos_token_id = None
    return theirs.requires_grad_(False)


def _their_name(name: str) -> str:
    for ours, theirs in (
        ("model.vision_tower.vision_tower.", "model.vision_tower."),
        ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
        ("lm_head.", "lm_head."),
        ("model.", "model.language_model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


def _share_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Share the buffers that are in no state dict (positions, rotary frequencies)."""
    for name, buffer in module.named_buffers():
        if buffer.device.type == "meta":
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, buffers[name])


@dataclass(frozen=True)
class Prompt:
    """B prompts of equal length with one image each; the ids are on the CPU, as a user has them.

    Attributes:
        input_ids: long[B, T] in our format (one placeholder for the image), on the CPU.
        images: float[B, 3, H, W] on the device.
    """

    input_ids: Tensor
    images: Tensor

    def expanded(self, image_token: int, num_tokens: int) -> Tensor:
        """The ids in transformers' format, long[B, T'], with the image's token repeated."""
        before, after = self.input_ids[:, :TEXT_BEFORE_IMAGE], self.input_ids[:, TEXT_BEFORE_IMAGE + 1 :]
        image = torch.full((len(before), num_tokens), image_token)
        return torch.cat([before, image, after], dim=1)


def build_prompt(model, batch: int, text_tokens: int, dtype: torch.dtype) -> Prompt:
    """A prompt of random ids and pixels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size - 1, (batch, text_tokens + 1), generator=generator)
    ids[:, TEXT_BEFORE_IMAGE] = IMAGE_TOKEN_INDEX
    pixels = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=model.device, dtype=dtype)
    return Prompt(ids, pixels)
