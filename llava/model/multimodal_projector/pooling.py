"""Compression without attention: neighbouring patches are averaged or concatenated; an MLP follows."""

# Legend: multimodal_projector/base.py

from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import (
    Compressor,
    FixedScaleCompressor,
    pooled_maps,
    to_maps,
    to_tokens,
    two_layer_map,
)
from llava.model.multimodal_projector.mlp import MLP
from llava.model.multimodal_projector.region_attention import regions


class AveragePool(Compressor, MLP):
    """Mean of each s x s region, then the two-layer MLP of mlp2x_gelu, whose weights it can load.

    Source: DeCo (Yao et al. 2024, "DeCo: Decoupling Token Compression from Semantic Abstraction in
    Multimodal Large Language Models"): adaptive average pooling at patch level.
    """

    def __init__(self, vision_width: int, llm_width: int, scale_factor: int):
        super().__init__(scale_factor, vision_width=vision_width, llm_width=llm_width)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        return self.map(to_tokens(pooled_maps(to_maps(features.selected), scale_factor)))


class PixelShuffle(FixedScaleCompressor):
    """Joins the s*s patches of a region in one token of s*s*C channels; layer norm and two-layer MLP follow.

    Source: InternVL 1.5 (Chen et al. 2024, "How Far Are We to GPT-4V?", section 3.1). The first layer's
    width depends on s.
    """

    def __init__(self, vision_width: int, llm_width: int, scale_factor: int):
        super().__init__(scale_factor)
        stacked = scale_factor**2 * vision_width
        self.norm = nn.LayerNorm(stacked)
        self.mlp = two_layer_map(stacked, llm_width)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        x = features.selected
        stacked = regions(x, scale_factor).reshape(x.shape[0], x.shape[1] // scale_factor**2, -1)
        return self.mlp(self.norm(stacked))
