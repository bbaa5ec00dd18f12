"""Builds the projector that a configuration asks for. A new one needs a file and a line in PROJECTORS."""

import dataclasses
import logging
import re
from typing import TYPE_CHECKING, get_type_hints

from llava.errors import UserError
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.cabstractor import CAbstractor
from llava.model.multimodal_projector.ldpv2 import LDPv2
from llava.model.multimodal_projector.mlp import IdentityProjector, LinearProjector, MLPProjector
from llava.model.multimodal_projector.pooling import AveragePool, PixelShuffle
from llava.model.multimodal_projector.pruning import PruMerge, VisionZip
from llava.model.multimodal_projector.resampler import Resampler
from llava.model.multimodal_projector.tokenpacker import TokenPacker
from llava.model.multimodal_projector.visualprism import VisualPrism
from llava.model.multimodal_projector.visualprism_v2 import VisualPrismV2
from llava.model.vision_config import CommonFields

logger = logging.getLogger(__name__)

PROJECTORS: dict[str, type[Projector]] = {
    "linear": LinearProjector,
    "identity": IdentityProjector,
    "visualprism": VisualPrism,
    "visualprism_v2": VisualPrismV2,
    "tokenpacker": TokenPacker,
    "avgpool": AveragePool,
    "pixel_shuffle": PixelShuffle,
    "resampler": Resampler,
    "cabstractor": CAbstractor,
    "ldpv2": LDPv2,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
}


def all_options() -> dict[str, tuple[type, dataclasses.Field]]:
    """The options of all projectors by name, each with its type."""
    return {
        declared.name: (get_type_hints(kind.Options)[declared.name], declared)
        for kind in PROJECTORS.values()
        for declared in kind.Options.declared()
    }


if TYPE_CHECKING:

    class VisionFields(CommonFields):
        """For the type checker, without the options: their names are known only at run time."""

else:
    VisionFields = dataclasses.make_dataclass(
        "VisionFields",
        [
            (name, kind, dataclasses.field(default=declared.default))
            for name, (kind, declared) in all_options().items()
        ],
        bases=(CommonFields,),
        namespace={
            "__module__": __name__,
            "__doc__": "All multimodal keys of config.json: CommonFields' and the options.",
        },
    )
MLP_TYPE = re.compile(r"mlp([1-9]\d*)x_gelu")
# Maps a weight to the type of projector that it identifies. The first match counts, because VisualPrism
# without HKVE has TokenPacker's weight too.
SIGNATURES = {
    "k_mix.0.weight": "visualprism_v2",
    "q_fusion_weights": "visualprism",
    "k_proj_1.0.weight": "tokenpacker",
}


def copy_fields(config: CommonFields, fields: CommonFields) -> None:
    """Set the multimodal keys of `config` to those of `fields`."""
    for name in VisionFields.__dataclass_fields__:
        setattr(config, name, getattr(fields, name))


def is_known(projector_type: str | None) -> bool:
    """Whether there is a projector class for a --mm_projector_type."""
    if not isinstance(projector_type, str):  # a YAML or JSON file may hold anything
        return False
    return projector_type in PROJECTORS or bool(MLP_TYPE.fullmatch(projector_type))


def projector_class(projector_type: str | None) -> type[Projector]:
    """The class of a --mm_projector_type. Raises UserError if the type is unknown."""
    if not is_known(projector_type):
        known = ", ".join([*PROJECTORS, "mlpNx_gelu"])
        raise UserError(f"--mm_projector_type {projector_type!r} is unknown; choose from {known}.")
    return PROJECTORS.get(projector_type or "", MLPProjector)


def build_projector(fields: VisionFields, llm_width: int) -> Projector:
    """A freshly initialised projector. Raises UserError if the type is unknown or does not fit the widths."""
    return projector_class(fields.mm_projector_type).from_fields(fields, llm_width)


def projector_type_of(names: list[str], declared: str | None, source: str) -> str | None:
    """Return the projector's type that config.json declares, unless the weights must decide.

    Published TokenPacker and VisualPrism configurations lack the type or say `linear`. In these cases, and
    for a type that this package does not know, the names of the weights decide. A warning is logged if they
    give another type than the declared one.

    Args:
        names: names of the projector's weights, without the prefix that the whole model adds.
        declared: config.json's mm_projector_type.
        source: the checkpoint's folder or file, for the warning.
    """
    if declared not in (None, "linear") and is_known(declared):
        return declared
    found = next((kind for weight, kind in SIGNATURES.items() if weight in names), declared)
    if found in (None, "linear") and names:
        if all(re.fullmatch(r"\d+\.(weight|bias)", name) for name in names):
            found = f"mlp{sum(name.endswith('.weight') for name in names)}x_gelu"
        elif set(names) == {"weight", "bias"}:
            found = "linear"
    if found != declared:
        logger.warning(
            "%s: config.json has mm_projector_type %r, but the weights are those of %s.",
            source,
            declared,
            found,
        )
    return found
