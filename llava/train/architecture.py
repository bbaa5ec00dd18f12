"""What a run may change of the multimodal checkpoint it goes on from, and what its weights fix."""

import logging

from llava.errors import UserError
from llava.model.multimodal_encoder.builder import read_vision_config
from llava.model.multimodal_projector.base import FixedScaleProjector
from llava.model.multimodal_projector.builder import projector_class
from llava.model.vision_config import VisionFields, parse_paths, resolve_levels, resolve_select_layer

logger = logging.getLogger(__name__)

TOWER_SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
)


def fixed_by_weights(fields: VisionFields, depth: int) -> dict:
    """The keys that a projector's weights were made or trained for, in a form that compares.

    Args:
        depth: layers of the tower.
    """
    layer = fields.mm_vision_select_layer
    fixed = {
        "mm_projector_type": fields.mm_projector_type,
        "mm_vision_select_layer": resolve_select_layer(layer, depth),
        "mm_vision_select_feature": fields.mm_vision_select_feature,
        "mm_patch_merge_type": fields.mm_patch_merge_type == "spatial_unpad",  # has the learnt newline
    }
    kind = projector_class(fields.mm_projector_type)
    if kind.needs_levels:
        fixed["mm_vision_levels"] = resolve_levels(fields.mm_vision_levels, depth, layer)
    if issubclass(kind, FixedScaleProjector):
        fixed["scale_factor"] = fields.scale_factor
    if fields.mm_projector_type in ("visualprism", "visualprism_v2"):
        fixed |= {
            "visualprism_tpqp": fields.visualprism_tpqp,
            "visualprism_paths": sorted(parse_paths(fields.visualprism_paths)),
            "visualprism_hkve": fields.visualprism_hkve,
            "visualprism_wavelet": fields.visualprism_wavelet,
        }
    if fields.mm_projector_type == "visualprism":
        fixed["visualprism_norm"] = fields.visualprism_norm.removeprefix("sync_")  # the same weights
    if fields.mm_projector_type == "visualprism_v2":
        fixed["visualprism_level_norm"] = fields.visualprism_level_norm
        fixed["visualprism_positions"] = fields.visualprism_positions
        fixed["visualprism_shortcut"] = fields.visualprism_shortcut
    return fixed


def check_changes(fields: VisionFields, own: VisionFields, source: str) -> None:
    """Refuse flags that the checkpoint's weights do not serve.

    Args:
        fields: what this run asks for.
        own: the checkpoint's.
        source: the checkpoint, for messages.
    Raises:
        UserError: with each such flag, its value and the checkpoint's.
    """
    tower = own.mm_vision_config or read_vision_config(fields.mm_vision_tower)
    check_tower(fields, own, tower, source)
    kept = fixed_by_weights(own, tower["num_hidden_layers"])
    asked = fixed_by_weights(fields, tower["num_hidden_layers"])
    problems = [
        f"--{name} {getattr(fields, name)}, the checkpoint's is {getattr(own, name) or kept[name]}"
        for name in kept.keys() & asked.keys()
        if asked[name] != kept[name]
    ]
    if problems:
        raise UserError(
            f"--model_name_or_path {source!r} already sees, and its weights were trained otherwise: "
            f"{'; '.join(sorted(problems))}. Leave these flags out, or start from a language model."
        )


def check_tower(fields: VisionFields, own: VisionFields, tower: dict, source: str) -> None:
    """--vision_tower, where it is not the one that config.json names.

    Raises:
        UserError: if it has another architecture.
    """
    if fields.mm_vision_tower == own.mm_vision_tower:
        return
    given = read_vision_config(fields.mm_vision_tower)
    differences = [
        f"{name} {given[name]} instead of {tower[name]}"
        for name in TOWER_SHAPE
        if name in given and name in tower and given[name] != tower[name]
    ]
    if differences:
        raise UserError(
            f"--vision_tower {fields.mm_vision_tower!r} is not the tower of {source!r}: "
            f"{', '.join(differences)}. Leave it out, or start from a language model."
        )
    logger.info(
        "--vision_tower %s has the form of the tower of %s, whose own weights are kept where it has them.",
        fields.mm_vision_tower,
        source,
    )
