"""VisualPrism v2: the three query paths over keys and values whose channels mix.

What differs from the published form, and why (docs/ablation.md has the measurements):
- The wavelet path hands on the sub-bands themselves: transformed back and sampled, all but LL would be lost
  at s = 2.
- Every level enters with mean 0 and variance 1 over its channels. A tower's states grow from layer to layer
  (in DINOv2-S sixfold over the four levels), so that the deepest would drown the others.
- Keys and values are each a map of all levels and a GELU; attention's own projections are their second layer.
  HKVE's single linear map, then depthwise convolutions, never mixes channels again.
- HKVE's local and global branches enter as residuals whose gains start at zero.
- Values carry where in their region they stand: a gain over the region's cosine basis, channel by channel,
  that starts at one. So a token keeps what a plain weighted mean over its patches would lose.
- Layer norms: no statistics of a batch, so training and evaluation compute the same, on any number of ranks.
"""

# Legend: multimodal_projector/base.py

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.model.multimodal_projector.base import NORM_EPS, downsample, to_maps, to_tokens
from llava.model.multimodal_projector.norms import ChannelNorm
from llava.model.multimodal_projector.triple_path import (
    GlobalGate,
    TriplePathCompressor,
    depthwise,
    in_published_order,
)
from llava.model.multimodal_projector.wavelet import SubbandPath
from llava.model.vision_config import VISUALPRISM_PATHS, VisionFields, query_paths

COSINES = 4  # of the basis along a side: complete for regions of up to 4x4 patches


def cosine_basis(scale_factor: int, device: torch.device) -> Tensor:
    """float32[s*s, COSINES**2]: the two-dimensional cosines at the patches of a region, row-major.

    Those of a type-II discrete cosine transform (Ahmed, Natarajan and Rao 1974), unscaled.
    """
    centres = (torch.arange(scale_factor, device=device) + 0.5) / scale_factor
    line = torch.cos(torch.pi * centres[:, None] * torch.arange(COSINES, device=device))
    return torch.einsum("ia,jb->ijab", line, line).reshape(scale_factor**2, COSINES**2)


class RegionGains(nn.Module):
    """A factor for each patch of a region and each channel, one at first; the weights serve every s."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(COSINES**2, width))

    def reset_parameters(self) -> None:
        init.zeros_(self.weight)

    def forward(self, grid_features: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, E], row-major grid, to the same shape."""
        side = round(grid_features.shape[1] ** 0.5) // scale_factor
        gains = 1 + cosine_basis(scale_factor, self.weight.device) @ self.weight.float()  # [s*s, E]
        gains = gains.to(grid_features.dtype).view(1, scale_factor, 1, scale_factor, -1)
        cells = grid_features.unflatten(1, (side, scale_factor, side, scale_factor))
        return (cells * gains).flatten(1, 4)


class Branches(nn.Module):
    """HKVE's local and global branches of one of keys and values, as a residual that is zero at first."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.conv = depthwise(width, kernel)
        self.norm = ChannelNorm(width, eps=NORM_EPS)
        self.gate = GlobalGate(width)
        self.local_gain = nn.Parameter(torch.zeros(width))
        self.global_gain = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        init.zeros_(self.local_gain)
        init.zeros_(self.global_gain)

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, E, G, G] to the same shape."""
        shape = (-1, 1, 1)
        local = nn.functional.gelu(self.norm(self.conv(maps)))
        whole = maps * self.gate.gain(maps)
        return maps + self.local_gain.view(shape) * local + self.global_gain.view(shape) * whole


class VisualPrismV2(TriplePathCompressor):
    """G*G patches to (G/s)**2 tokens; no parameter depends on s or on G.

    Args, beside RegionCompressor's:
        paths: which of identity, local and wavelet make the queries; identity alone is without TPQP.
        level_norm: whether every level is normed as it enters.
        branches: whether the local and global branches are there.
        positions: whether values carry their place in the region.
        shortcut: whether the query is added to what it gathered, by a gain that starts at zero.
        wavelet: a discrete wavelet of PyWavelets.
    Raises:
        UserError: on an unknown path or wavelet, or heads that do not divide E.
    """

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        scale_factor: int,
        num_levels: int = 4,
        width: int | None = None,
        num_heads: int | None = None,
        *,
        paths: tuple[str, ...] = VISUALPRISM_PATHS,
        level_norm: bool = True,
        branches: bool = True,
        positions: bool = True,
        shortcut: bool = False,
        wavelet: str = "haar",
    ):
        super().__init__(
            vision_width, llm_width, scale_factor, num_levels, width, num_heads, level_maps=False
        )
        width = width or vision_width
        self.vision_width, self.level_norm = vision_width, level_norm
        self.paths = in_published_order(paths)
        if "identity" in self.paths:
            self.q_identity = nn.Linear(vision_width, width)
        if "local" in self.paths:
            self.q_local = nn.ModuleList(
                nn.Sequential(
                    depthwise(vision_width, kernel), ChannelNorm(vision_width, eps=NORM_EPS), nn.GELU()
                )
                for kernel in (3, 5)
            )
            self.q_local_proj = nn.Linear(2 * vision_width, width)
        if "wavelet" in self.paths:
            self.q_wavelet = SubbandPath(vision_width, ChannelNorm, wavelet)
            self.q_wavelet_proj = nn.Linear(4 * vision_width, width)
        self.make_fusion(width)
        self.k_mix = nn.Sequential(nn.Linear(num_levels * vision_width, width), nn.GELU())
        self.v_mix = nn.Sequential(nn.Linear(num_levels * vision_width, width), nn.GELU())
        self.k_branches = Branches(width, 7) if branches else None
        self.v_branches = Branches(width, 3) if branches else None
        self.v_positions = RegionGains(width) if positions else None
        self.shortcut_gain = nn.Parameter(torch.zeros(width)) if shortcut else None
        self.initialize()

    @classmethod
    def from_fields(cls, fields: VisionFields, llm_width: int) -> "VisualPrismV2":
        return cls(
            fields.mm_hidden_size,
            llm_width,
            fields.scale_factor,
            len(fields.mm_vision_levels),
            paths=query_paths(fields),
            level_norm=fields.visualprism_level_norm,
            branches=fields.visualprism_hkve,
            positions=fields.visualprism_positions,
            shortcut=fields.visualprism_shortcut,
            wavelet=fields.visualprism_wavelet,
        )

    def wavelet_path(self) -> SubbandPath:
        return self.q_wavelet

    def normed(self, levels: Tensor) -> Tensor:
        """Each level of float[B, N, L*C] with mean 0 and variance 1 over its channels."""
        if not self.level_norm:
            return levels
        apart = levels.unflatten(-1, (-1, self.vision_width))
        return nn.functional.layer_norm(apart, (self.vision_width,), eps=NORM_EPS).flatten(-2)

    def path_queries(self, x: Tensor, scale_factor: int) -> Iterator[Tensor]:
        """As TriplePathCompressor's; sampling comes before the linear maps, with which it commutes."""
        maps = to_maps(self.normed(x))

        def sampled(part: Tensor) -> Tensor:
            return to_tokens(downsample(part, scale_factor))

        paths = {
            "identity": lambda: self.q_identity(sampled(maps)),
            "local": lambda: self.q_local_proj(torch.cat([sampled(conv(maps)) for conv in self.q_local], -1)),
            "wavelet": lambda: self.q_wavelet_proj(
                to_tokens(self.q_wavelet(maps, maps.shape[-1] // scale_factor))
            ),
        }
        return (paths[path]() for path in self.paths)

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]; values do not carry their places yet."""
        x_multi = self.normed(x_multi)
        key, value = self.k_mix(x_multi), self.v_mix(x_multi)
        if self.k_branches is not None:
            key, value = (
                to_tokens(branches(to_maps(part)))
                for branches, part in ((self.k_branches, key), (self.v_branches, value))
            )
        return self.ln_k_1(key), self.ln_v_1(value)

    def compress(self, x: Tensor, x_multi: Tensor, scale_factor: int) -> Tensor:
        key, value = self.keys_and_values(x_multi)
        if self.v_positions is not None:
            value = self.v_positions(value, scale_factor)
        query = self.queries(x, scale_factor)
        gathered = self.clip_attn(query, key, value, scale_factor)
        if self.shortcut_gain is not None:
            gathered = gathered + self.shortcut_gain * query
        return self.mlp(gathered)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.shortcut_gain is not None:
            init.zeros_(self.shortcut_gain)
