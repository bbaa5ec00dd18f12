"""C-Abstractor: convolutions, average pooling, convolutions (Cha et al. 2024, "Honeybee: Locality-enhanced
Projector for Multimodal LLM", section 3.2)."""

# Legend: multimodal_projector/base.py

import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Compressor, pooled_maps, to_maps, to_tokens
from llava.model.multimodal_projector.norms import ChannelNorm
from llava.model.multimodal_projector.squeeze_excitation import SqueezeExcitation


class RegNetBlock(nn.Module):
    """Residual bottleneck of ratio 1 (Radosavovic et al. 2020, "Designing Network Design Spaces", block Y):
    1x1, depthwise 3x3, squeeze and excitation, 1x1. The norm is of the channels, without batch statistics."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_width, width, 1, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            ChannelNorm(width),
            nn.SiLU(),
            SqueezeExcitation(width, nn.SiLU),
            nn.Conv2d(width, width, 1, bias=False),
            ChannelNorm(width),
        )
        if in_width == width:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), ChannelNorm(width))

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, in, G, G] to float[B, width, G, G]."""
        return F.silu(self.residual(maps) + self.shortcut(maps))


def stage(in_width: int, width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(RegNetBlock(width if i else in_width, width) for i in range(depth)))


class CAbstractor(Compressor):
    """G*G patches to (G/s)**2 tokens; no parameter depends on s or on G, so there are no learnt positions.

    Args:
        vision_width: C.
        llm_width: D.
        scale_factor: s; forward may override it.
        width: E, by default C (the paper's 1024 for CLIP-L).
        depth: blocks ahead of the pooling, and again after it; the paper's 3.
    """

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        scale_factor: int,
        width: int | None = None,
        depth: int = 3,
    ):
        super().__init__(scale_factor)
        width = width or vision_width
        self.before = stage(vision_width, width, depth)
        self.after = stage(width, width, depth)
        self.readout = nn.Linear(width, llm_width)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        pooled = pooled_maps(self.before(to_maps(features.selected)), scale_factor)
        return self.readout(to_tokens(self.after(pooled)))
