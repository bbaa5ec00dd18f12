"""Exports of models that LlavaForConditionalGeneration or LlavaNextForConditionalGeneration can run."""

from transformers import LlavaConfig, LlavaNextConfig, LlavaNextProcessor, LlavaProcessor, PretrainedConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.model.multimodal_encoder.builder import VISION_TOWERS
from llava.model.multimodal_projector.builder import projector_class
from llava.model.vision_config import CommonFields
from llava.tiling import parse_pinpoints

# Vision models from which transformers' classes take the same features as ours
TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")
IMAGE_OPTIONS = (
    *("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean"),
    "image_std",
)


def is_stock(config: CommonFields) -> bool:
    """Whether a class of transformers computes the same as ours; mm_vision_config must be known."""
    tower = config.mm_vision_config or {}
    fits = (
        config.mm_projector_type == "mlp2x_gelu"
        and not has_norms(config)
        and tower.get("model_type") in TOWERS
        and config.mm_vision_image_size in (None, tower.get("image_size"))
    )
    if config.image_aspect_ratio == "anyres":
        is_next = config.mm_patch_merge_type == "spatial_unpad" and config.mm_vision_select_feature == "patch"
        return fits and is_next
    return fits and config.image_aspect_ratio in ("square", "pad")


def has_norms(config: CommonFields) -> bool:
    """Whether the projector normalises its input or its output, which transformers' classes do not."""
    options = projector_class(config.mm_projector_type).options(config)
    return bool(options.mm_projector_norm or options.mm_projector_input_norm)


def stock_config(config: PretrainedConfig, text_config, vision_config, image_token_id: int):
    """transformers' configuration of a model for which is_stock is True."""
    grid = vision_config.image_size // vision_config.patch_size
    select = "default" if drops_class_token(config) else "full"
    options = {
        "text_config": text_config,
        "vision_config": vision_config,
        "image_token_index": image_token_id,
        "image_seq_length": grid**2 + (num_class_tokens(config) if select == "full" else 0),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.mm_vision_select_layer,
        "vision_feature_select_strategy": select,
        "tie_word_embeddings": text_config.tie_word_embeddings,
    }
    if config.image_aspect_ratio != "anyres":
        return LlavaConfig(architectures=["LlavaForConditionalGeneration"], **options)
    pinpoints = high_by_wide(config, vision_config.image_size)
    return LlavaNextConfig(
        architectures=["LlavaNextForConditionalGeneration"], image_grid_pinpoints=pinpoints, **options
    )


def num_class_tokens(config) -> int:
    return VISION_TOWERS[config.mm_vision_config["model_type"]].num_prefix_tokens


def drops_class_token(config) -> bool:
    return config.mm_vision_select_feature == "patch" and num_class_tokens(config) > 0


def high_by_wide(config, side: int) -> list[list[int]]:
    """anyres' resolutions as transformers writes them, with the height first."""
    return [[height, width] for width, height in parse_pinpoints(config.image_grid_pinpoints, side)]


def stock_processor(config, image_processor, tokenizer, chat_template: str):
    """transformers' processor, with the arithmetic of the tower's image processor, as ours has it."""
    side = config.mm_vision_image_size or config.mm_vision_config["image_size"]
    options = {name: getattr(image_processor, name) for name in IMAGE_OPTIONS}
    options |= {
        "crop_size": {"height": side, "width": side},  # it is read even if nothing is cropped
        "do_center_crop": bool(getattr(image_processor, "do_center_crop", None)),
    }
    parts = {
        "tokenizer": tokenizer,
        "patch_size": config.mm_vision_config["patch_size"],
        "vision_feature_select_strategy": "default" if drops_class_token(config) else "full",
        "num_additional_image_tokens": num_class_tokens(config),
        "chat_template": chat_template,
    }
    if config.image_aspect_ratio == "anyres":
        images = LlavaNextImageProcessorPil(image_grid_pinpoints=high_by_wide(config, side), **options)
        return LlavaNextProcessor(image_processor=images, **parts)
    images = LlavaImageProcessorPil(do_pad=config.image_aspect_ratio == "pad", **options)
    return LlavaProcessor(image_processor=images, **parts)
