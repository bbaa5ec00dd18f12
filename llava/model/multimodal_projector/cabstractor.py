"""C-Abstractor: convolutions, average pooling, convolutions (Cha et al. 2024, "Honeybee: Locality-enhanced
Projector for Multimodal LLM", section 3.2)."""

# Legend: multimodal_projector/base.py

import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Compressor, pooled_maps, to_maps, to_tokens
from llava.model.multimodal_projector.norms import ChannelNorm
from llava.model.multimodal_projector.squeeze_excitation import SqueezeExcitation

DEPTH = 3  # blocks before the pooling, and as many after it, as in the paper


class RegNetBlock(nn.Module):
    """Residual bottleneck of ratio 1 (Radosavovic et al. 2020, "Designing Network Design Spaces", block Y):
    1x1, depthwise 3x3, squeeze and excitation, 1x1. The norms are over channels, without batch statistics."""

    def __init__(self, width: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            SqueezeExcitation(width, nn.SiLU),
            nn.Conv2d(width, width, 1, bias=False),
            ChannelNorm(width),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        return F.silu(self.residual(maps) + maps)


class CAbstractor(Compressor):
    """Turns G*G patches into (G/s)**2 tokens. No parameter depends on s or G: there are no learnt positions.

    Args:
        vision_width: C.
        llm_width: D.
        scale_factor: s; forward may override it.
    """

    def __init__(self, vision_width: int, llm_width: int, scale_factor: int):
        super().__init__(scale_factor)
        self.before = nn.Sequential(*(RegNetBlock(vision_width) for _ in range(DEPTH)))
        self.after = nn.Sequential(*(RegNetBlock(vision_width) for _ in range(DEPTH)))
        self.readout = nn.Linear(vision_width, llm_width)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        pooled = pooled_maps(self.before(to_maps(features.selected)), scale_factor)
        return self.readout(to_tokens(self.after(pooled)))
