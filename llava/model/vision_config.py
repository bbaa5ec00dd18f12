"""The multimodal keys of config.json that all projectors share, with their defaults.

A projector's own options are declared in its file (multimodal_projector/options.py). VisionFields, in
multimodal_projector/builder.py, has all of them.
"""

from dataclasses import dataclass
from itertools import pairwise

from llava.errors import UserError

# The hidden states that a tower of 24 layers gives (0 is the embedding output); for other depths they are
# scaled (SPEC 1).
REFERENCE_LEVELS = (12, 16, 22)
REFERENCE_DEPTH = 24


@dataclass
class CommonFields:
    """The vision settings of a model. Names are those of published LLaVA configurations.

    Attributes:
        mm_vision_tower: folder or hub name of the tower; None makes a text-only model.
        mm_vision_config: the tower's own configuration, so that a model folder is complete in itself.
        mm_vision_select_layer: hidden state passed to the projector; 0 is the embedding output, -1 the last.
        mm_vision_select_feature: "patch" (class token removed) or "cls_patch".
        mm_vision_levels: hidden states passed to multi-level projectors, ascending.
        mm_vision_image_size: side of the square input in pixels; None means the tower's own.
        mm_projector_type: a key of multimodal_projector.builder.PROJECTORS, or mlpNx_gelu.
        mm_hidden_size: channels of the tower.
        scale_factor: s; compressing projectors give N / s**2 tokens.
        patch_num, image_grid_pinpoints, mm_patch_merge_type: settings of tiling (llava.tiling); published
            configurations may have the number and the list as text.
        slice_separator_ids: token ids of the separators of `slice`, between tiles and after a row of tiles.
        elastic_scale_factors: s is drawn from these at each training step; None: always scale_factor.
        use_sinkhorn_lsd, sinkhorn_*: the regulariser of the loss in training (llava.model.sinkhorn).
    """

    mm_vision_tower: str | None = None
    mm_vision_config: dict | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_vision_levels: list | None = None
    mm_vision_image_size: int | None = None
    mm_projector_type: str | None = "linear"
    mm_hidden_size: int | None = None
    scale_factor: int = 2
    elastic_scale_factors: list | None = None
    patch_num: int | str = 9
    image_aspect_ratio: str = "square"
    image_grid_pinpoints: list | str | None = None
    mm_patch_merge_type: str = "flat"
    slice_separator_ids: list | None = None
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    tune_mm_mlp_adapter: bool = False
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
    conv_version: str | None = None  # the conversation template it was trained with
    use_sinkhorn_lsd: bool = False
    sinkhorn_alpha_ce: float = 1.0
    sinkhorn_beta: float = 0.6
    sinkhorn_tau_sd: float = 2.2
    sinkhorn_lambda: float = 0.12
    sinkhorn_iters: int = 16
    sinkhorn_max_tokens: int = 768


def plain_type(config_class: type) -> str:
    """The model_type of the language model without vision that a family's configuration extends."""
    return next(kind for kind in config_class.__mro__ if not issubclass(kind, CommonFields)).model_type  # type: ignore[attr-defined]


def vision_grid(fields: CommonFields) -> int:
    """G, the number of patches along a side of the tower's input; the tower's configuration must be known."""
    assert fields.mm_vision_config is not None
    image_size = fields.mm_vision_image_size or fields.mm_vision_config["image_size"]
    return image_size // fields.mm_vision_config["patch_size"]


def resolve_select_layer(select_layer: int, depth: int) -> int:
    """Index of a hidden state of a tower of `depth` layers, in 0..depth."""
    index = select_layer if select_layer >= 0 else depth + 1 + select_layer
    if not 0 <= index <= depth:
        raise UserError(
            f"--mm_vision_select_layer {select_layer} is outside the tower's hidden states; "
            f"choose from {-depth - 1} to {depth}."
        )
    return index


def default_levels(depth: int, selected: int) -> list[int]:
    """Hidden states 12, 16 and 22 of 24, scaled to `depth`, and the selected one; strictly increasing."""
    levels = [round(level * depth / REFERENCE_DEPTH) for level in REFERENCE_LEVELS] + [selected]
    for i in reversed(range(len(levels) - 1)):
        levels[i] = min(levels[i], levels[i + 1] - 1)
    if levels[0] < 0:
        raise UserError(
            f"a tower of {depth} layers has too few hidden states below {selected} for {len(levels)} levels; "
            "choose them with --mm_vision_levels."
        )
    return levels


def resolve_levels(levels: list[int] | None, depth: int, select_layer: int) -> list[int]:
    """The levels a tower gives, as ascending indices of its hidden states.

    Raises UserError if they are not strictly increasing or are outside the tower's range.
    """
    if levels is None:
        return default_levels(depth, resolve_select_layer(select_layer, depth))
    resolved = [resolve_select_layer(level, depth) for level in levels]
    if any(low >= high for low, high in pairwise(resolved)):
        raise UserError(
            f"--mm_vision_levels must be strictly increasing, got {list(levels)} (of {depth} layers)."
        )
    return resolved
