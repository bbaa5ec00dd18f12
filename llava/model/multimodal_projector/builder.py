"""Which projector a configuration asks for. A new one is a file and a line of PROJECTORS."""

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
        """The checker sees no options: their names are known at run time."""

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
# A weight that one type of projector alone has; VisualPrism without HKVE shares TokenPacker's.
SIGNATURES = {
    "k_mix.0.weight": "visualprism_v2",
    "q_fusion_weights": "visualprism",
    "k_proj_1.0.weight": "tokenpacker",
}


def copy_fields(config: CommonFields, fields: CommonFields) -> None:
    """Set a configuration's multimodal keys."""
    for name in VisionFields.__dataclass_fields__:
        setattr(config, name, getattr(fields, name))


def is_known(projector_type: str | None) -> bool:
    """Whether a --mm_projector_type names a class."""
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
    """The projector's type: what config.json declares, unless that cannot be meant.

    Published TokenPacker and VisualPrism configurations lack the type or say `linear`. For these two, and for
    a type that this package does not know, the names of the weights decide, and a warning says so.

    Args:
        names: of the projector's weights, cut to its own.
        declared: config.json's mm_projector_type.
        source: the folder, for the warning.
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
            "%s: config.json says mm_projector_type %r, its weights are %s's.", source, declared, found
        )
    return found
