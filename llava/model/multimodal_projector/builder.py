"""Which projector a configuration asks for. A new one is a file and a line of PROJECTORS."""

import re

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
from llava.model.vision_config import VisionFields

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
MLP_TYPE = re.compile(r"mlp([1-9]\d*)x_gelu")


def projector_class(projector_type: str | None) -> type[Projector]:
    """The class of a --mm_projector_type.

    Raises:
        UserError: if the type is unknown.
    """
    if MLP_TYPE.fullmatch(projector_type or ""):
        return MLPProjector
    if projector_type not in PROJECTORS:
        known = ", ".join([*PROJECTORS, "mlpNx_gelu"])
        raise UserError(f"--mm_projector_type {projector_type!r} is unknown; choose from {known}.")
    return PROJECTORS[projector_type]


def build_projector(fields: VisionFields, llm_width: int) -> Projector:
    """A freshly initialised projector.

    Raises:
        UserError: if the type is unknown or does not fit the widths.
    """
    return projector_class(fields.mm_projector_type).from_fields(fields, llm_width)
