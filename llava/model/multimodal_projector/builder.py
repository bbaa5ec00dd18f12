"""Which projector a configuration asks for. A new one is a file and a line of PROJECTORS."""

import re
from collections.abc import Callable

from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.mlp import IdentityProjector, LinearProjector, MLPProjector
from llava.model.multimodal_projector.visualprism import VisualPrism
from llava.model.vision_config import VisionFields

Recipe = Callable[[VisionFields, int], Projector]  # (configuration, language model width) -> projector

PROJECTORS: dict[str, Recipe] = {
    "linear": lambda fields, width: LinearProjector(fields.mm_hidden_size, width),
    "identity": lambda fields, width: IdentityProjector(fields.mm_hidden_size, width),
    "visualprism": lambda fields, width: VisualPrism(fields.mm_hidden_size, width, fields.scale_factor),
}
MLP_TYPE = re.compile(r"mlp([1-9]\d*)x_gelu")


def needs_levels(projector_type: str) -> bool:
    """Whether this type reads several levels of the tower."""
    return projector_type in ("visualprism",)


def build_projector(fields: VisionFields, llm_width: int) -> Projector:
    """A freshly initialised projector.

    Raises:
        ValueError: if the type is unknown or does not fit the widths.
    """
    name = fields.mm_projector_type
    if name in PROJECTORS:
        return PROJECTORS[name](fields, llm_width)
    if match := MLP_TYPE.fullmatch(name or ""):
        return MLPProjector(fields.mm_hidden_size, llm_width, depth=int(match[1]))
    known = ", ".join([*PROJECTORS, "mlpNx_gelu"])
    raise ValueError(f"--mm_projector_type {name!r} is unknown; choose from {known}.")
