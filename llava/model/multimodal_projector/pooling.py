"""Compression without attention: average neighbouring patches, or lay them side by side; then an MLP."""

# Legend: multimodal_projector/base.py

import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import (
    FixedScaleProjector,
    grid_side,
    to_maps,
    to_tokens,
    two_layer_map,
)
from llava.model.multimodal_projector.mlp import MLPProjector
from llava.model.multimodal_projector.region_attention import regions
from llava.model.vision_config import VisionFields


class AveragePool(MLPProjector):
    """Mean of each s x s region, then the two-layer MLP of mlp2x_gelu, whose weights it can load.

    Source: DeCo (Yao et al. 2024, "DeCo: Decoupling Token Compression from Semantic Abstraction in
    Multimodal Large Language Models"): adaptive average pooling at patch level.
    """

    compresses = True

    def __init__(self, vision_width: int, llm_width: int, scale_factor: int):
        super().__init__(vision_width, llm_width, depth=2)
        self.scale_factor = scale_factor

    @classmethod
    def from_fields(cls, fields: VisionFields, llm_width: int) -> "AveragePool":
        return cls(fields.mm_hidden_size, llm_width, fields.scale_factor)

    def forward(self, features: VisionFeatures, scale_factor: int | None = None) -> Tensor:
        """selected float[B, N, C] to float[B, M, D]; scale_factor is s of this call.

        Raises:
            UserError: if N is not a square or s does not divide its side.
        """
        x = features.selected
        side = self.output_grid(grid_side(x.shape[1]), scale_factor)
        pooled = to_tokens(F.adaptive_avg_pool2d(to_maps(x), side))
        return super().forward(VisionFeatures(pooled))


class PixelShuffle(FixedScaleProjector):
    """The s*s patches of each region side by side in one token of s*s*C channels, layer norm, two-layer MLP.

    Source: InternVL 1.5 (Chen et al. 2024, "How Far Are We to GPT-4V?", section 3.1). The first layer's
    width depends on s.
    """

    def __init__(self, vision_width: int, llm_width: int, scale_factor: int):
        super().__init__(scale_factor)
        stacked = scale_factor**2 * vision_width
        self.norm = nn.LayerNorm(stacked)
        self.mlp = two_layer_map(stacked, llm_width)

    def forward(self, features: VisionFeatures, scale_factor: int | None = None) -> Tensor:
        """selected float[B, N, C] to float[B, M, D].

        Raises:
            UserError: if N is not a square, s does not divide its side, or s is not the module's own.
        """
        x = features.selected
        side = self.output_grid(grid_side(x.shape[1]), scale_factor)
        stacked = regions(x, self.scale_factor).reshape(x.shape[0], side * side, -1)
        return self.mlp(self.norm(stacked))
