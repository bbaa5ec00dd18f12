"""Exports of models whose class is our own, in llava.hf."""

import torch
from transformers import PretrainedConfig

from llava.errors import UserError
from llava.export.stock import IMAGE_OPTIONS
from llava.hf import VisualPrismConfig, VisualPrismImageProcessor, VisualPrismModel, VisualPrismProcessor
from llava.model.multimodal_projector.builder import VisionFields
from llava.model.tokenizer import separator_ids

# Keys that only the training run needs; and the tower's configuration, which becomes vision_config
LEFT_OUT = ("mm_vision_config", "mm_hidden_size", "tune_mm_mlp_adapter", "tokenizer_model_max_length")


def native_config(config: PretrainedConfig, text_config, vision_config, tokenizer, image_token_id: int):
    """Our configuration, with the ids of the separators between slice's tiles."""
    names = [
        name for name in VisionFields.__dataclass_fields__ if name not in LEFT_OUT and "sinkhorn" not in name
    ]
    fields = {name: getattr(config, name) for name in names}
    if config.slice_separator_ids is None:
        fields["slice_separator_ids"] = separator_ids(tokenizer)
    return VisualPrismConfig(  # type: ignore[call-arg]  # mypy does not read transformers' classes
        architectures=["VisualPrismForConditionalGeneration"],
        text_config=text_config,
        vision_config=vision_config,
        image_token_index=image_token_id,
        tie_word_embeddings=text_config.tie_word_embeddings,
        **fields,
    )


def native_processor(config: VisualPrismConfig, image_processor, tokenizer, chat_template: str):
    """Our processor, with the number of tokens at each s that the model serves."""
    with torch.device("meta"):
        model = VisualPrismModel(config)
    side = model.vision_tower.image_size
    compresses = model.get_projector().compresses
    options = {name: getattr(image_processor, name) for name in IMAGE_OPTIONS}
    images = VisualPrismImageProcessor(
        tokens_per_view=tokens_by_scale(model) if compresses else {1: model.tokens_per_view()},
        scale_factor=config.scale_factor if compresses else None,
        image_aspect_ratio=config.image_aspect_ratio,
        patch_num=config.patch_num,
        image_grid_pinpoints=config.image_grid_pinpoints,
        mm_patch_merge_type=config.mm_patch_merge_type,
        crop_size={"height": side, "width": side},
        do_center_crop=bool(getattr(image_processor, "do_center_crop", None)),
        **options,
    )
    return VisualPrismProcessor(images, tokenizer, chat_template=chat_template)


def tokens_by_scale(model: VisualPrismModel) -> dict[int, int]:
    """Maps each s that the model serves to its tokens a view."""
    model.tokens_per_view()  # refuses a configuration that does not serve even its own s
    found = {}
    for scale_factor in range(1, model.vision_tower.grid_side + 1):
        try:
            found[scale_factor] = model.tokens_per_view(scale_factor)
        except UserError:  # s does not divide the grid, or the weights need another
            continue
    return found
