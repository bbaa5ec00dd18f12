"""Tiny random models and towers that tests build, save and load in well under a second each."""

# 56 px, patches of 14: a 4x4 grid

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.model.builder import attach_vision, read_config, type_of
from llava.model.vision_config import VisionFields

TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
VOCABULARY = 600


def clip(**changes) -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            **{**TRANSFORMER, "num_hidden_layers": 6, "image_size": 56, "patch_size": 14, **changes}
        )
    ).eval()


def siglip() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        **TRANSFORMER, num_hidden_layers=6, image_size=56, patch_size=14, vision_use_head=False
    )
    return SiglipVisionModel(config).eval()


def siglip2() -> Siglip2VisionModel:
    config = Siglip2VisionConfig(
        **TRANSFORMER, num_hidden_layers=6, num_patches=16, patch_size=14, vision_use_head=False
    )
    return Siglip2VisionModel(config).eval()


def dinov2() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=32, num_attention_heads=2, mlp_ratio=2, num_hidden_layers=6, image_size=56, patch_size=14
    )
    return Dinov2Model(config).eval()


TOWERS = {"clip": clip, "siglip": siglip, "siglip2": siglip2, "dinov2": dinov2}

DECODER = {**TRANSFORMER, "num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY}
LANGUAGE_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**DECODER)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=16)),
}


def save_tower(folder, family: str = "clip"):
    """A tower's folder with its image processor; returns the folder as a string."""
    TOWERS[family]().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(
        folder
    )
    return str(folder)


def save_language_model(folder, family: str = "llama"):
    LANGUAGE_MODELS[family]().save_pretrained(folder)
    return str(folder)


def build(folder, family: str = "llama", tower: str = "clip", **fields):
    """A multimodal model in eval mode over freshly saved parts below `folder`; visualprism, s = 2."""
    torch.manual_seed(0)
    language_model = save_language_model(folder / "language_model", family)
    config = read_config(language_model)
    model = type_of(config).from_pretrained(language_model, config=config)
    vision_tower = save_tower(folder / "tower", tower)
    fields = {"mm_projector_type": "visualprism", **fields}
    attach_vision(model, VisionFields(mm_vision_tower=vision_tower, **fields))
    return model.eval()
