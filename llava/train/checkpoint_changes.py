"""Checks which settings of a multimodal checkpoint a run may change, and which ones its weights fix."""

import logging

from llava.errors import UserError
from llava.model.compatibility import TOWER_KEYS, fixed_by_weights
from llava.model.multimodal_encoder.builder import read_vision_config
from llava.model.multimodal_projector.builder import VisionFields

logger = logging.getLogger(__name__)


def check_changes(fields: VisionFields, own: VisionFields, source: str) -> None:
    """Refuse flags that do not fit the checkpoint's weights.

    Args:
        fields: the vision settings that this run asks for.
        own: the checkpoint's vision settings.
        source: the checkpoint, for messages.
    Raises:
        UserError: if there are any; it names each flag with its value and the checkpoint's.
    """
    tower = own.mm_vision_config or read_vision_config(fields.mm_vision_tower)  # type: ignore[arg-type]
    check_tower(fields, own, tower, source)
    kept = fixed_by_weights(own, tower["num_hidden_layers"])
    asked = fixed_by_weights(fields, tower["num_hidden_layers"])
    problems = [
        f"--{name} {getattr(fields, name)}, but the checkpoint has {getattr(own, name) or kept[name]}"
        for name in kept.keys() & asked.keys()
        if asked[name] != kept[name]
    ]
    if problems:
        raise UserError(
            f"--model_name_or_path {source!r} was trained on images with other vision settings: "
            f"{'; '.join(sorted(problems))}. Leave these flags out, or start from a language model."
        )


def check_tower(fields: VisionFields, own: VisionFields, tower: dict, source: str) -> None:
    """Check --vision_tower if it is not the tower that config.json names.

    Raises:
        UserError: if the two towers differ in architecture.
    """
    if fields.mm_vision_tower == own.mm_vision_tower:
        return
    given = read_vision_config(fields.mm_vision_tower)  # type: ignore[arg-type]
    differences = [
        f"{name} {given[name]} instead of {tower[name]}"
        for name in TOWER_KEYS
        if name in given and name in tower and given[name] != tower[name]
    ]
    if differences:
        raise UserError(
            f"--vision_tower {fields.mm_vision_tower!r} is not the tower of {source!r}: "
            f"{', '.join(differences)}. Leave it out, or start from a language model."
        )
    logger.info(
        "--vision_tower %s has the architecture of the tower of %s. If that checkpoint contains weights of "
        "the tower, they are used.",
        fields.mm_vision_tower,
        source,
    )
