"""LLaVA's own projectors: no compression, one token a patch (Liu et al. 2023, "Visual Instruction Tuning" and
"Improved Baselines with Visual Instruction Tuning")."""

from torch import Tensor, nn

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Projector
from llava.model.vision_config import CommonFields


class IdentityProjector(Projector):
    """Returns float[B, N, C] unchanged; C must be the language model's width."""

    def __init__(self, vision_width: int, llm_width: int):
        if vision_width != llm_width:
            raise UserError(
                "--mm_projector_type identity needs equal widths, "
                f"got tower {vision_width} and language model {llm_width}; use linear or mlp2x_gelu."
            )
        super().__init__()

    def project(self, features: VisionFeatures) -> Tensor:
        return features.selected


class LinearProjector(Projector, nn.Linear):
    """Maps float[B, N, C] to float[B, N, D] by one affine map."""

    def __init__(self, vision_width: int, llm_width: int):
        super().__init__(vision_width, llm_width)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.Linear.reset_parameters(self)

    def project(self, features: VisionFeatures) -> Tensor:
        return nn.Linear.forward(self, features.selected)


class MLP(Projector, nn.Sequential):
    """`depth` affine maps with GELU between them, named 0, 2, ... as in published checkpoints."""

    def __init__(self, vision_width: int, llm_width: int, depth: int = 2):
        layers = [nn.Linear(vision_width, llm_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(llm_width, llm_width)]
        super().__init__(*layers)
        self.num_layers = len(layers)

    def map(self, tokens: Tensor) -> Tensor:
        """float[B, ..., C] to float[B, ..., D]."""
        for index in range(self.num_layers):  # an output norm comes after them among the children
            tokens = self[index](tokens)
        return tokens


class MLPProjector(MLP):
    """Maps float[B, N, C] to float[B, N, D]; --mm_projector_type contains the depth."""

    @classmethod
    def arguments(cls, fields: CommonFields) -> dict:
        return {"depth": int(fields.mm_projector_type.removeprefix("mlp").removesuffix("x_gelu"))}  # type: ignore[union-attr]

    def project(self, features: VisionFeatures) -> Tensor:
        return self.map(features.selected)
