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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import NORM_EPS
from llava.model.multimodal_projector.folding import Foldable
from llava.model.multimodal_projector.norms import ChannelNorm
from llava.model.multimodal_projector.options import option
from llava.model.multimodal_projector.squeeze_excitation import SqueezeExcitation
from llava.model.multimodal_projector.triple_path import TriplePathCompressor, TriplePathOptions, depthwise
from llava.model.multimodal_projector.visualprism_v2_merged import MergedVisualPrismV2
from llava.model.multimodal_projector.wavelet import SubbandPath

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

    def gains(self, scale_factor: int) -> Tensor:
        """float[s*s, E], the factors at the patches of a region, row-major."""
        gains = 1 + cosine_basis(scale_factor, self.weight.device) @ self.weight.float()
        return gains.to(self.weight.dtype)


class Branches(nn.Module):
    """HKVE's local and global branches of one of keys and values, as a residual that is zero at first."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.conv = depthwise(width, kernel)
        self.norm = ChannelNorm(width, eps=NORM_EPS)
        self.gate = SqueezeExcitation(width, nn.GELU)
        self.local_gain = nn.Parameter(torch.zeros(width))
        self.global_gain = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        init.zeros_(self.local_gain)
        init.zeros_(self.global_gain)

    def local(self, maps: Tensor) -> Tensor:
        """The local branch before its gain: float[B, E, G, G] to the same shape."""
        return nn.functional.gelu(self.norm(self.conv(maps)))


@dataclass(frozen=True)
class VisualPrismV2Options(TriplePathOptions):
    """TriplePathOptions, and the parts of this form alone."""

    visualprism_level_norm: bool = option(
        True, "Every level is normed as it enters; of visualprism_v2 alone."
    )
    visualprism_positions: bool = option(
        True, "Values carry their place in the region; of visualprism_v2 alone."
    )
    visualprism_shortcut: bool = option(
        False,
        "The query is added to what it gathered, by a gain that starts at zero; of visualprism_v2 alone.",
    )


class VisualPrismV2(Foldable, TriplePathCompressor):
    """G*G patches to (G/s)**2 tokens; no parameter depends on s or on G.

    Args: RegionCompressor's, and the options; visualprism_hkve makes the local and global branches.
    Raises:
        UserError: on an unknown path or wavelet, or heads that do not divide E.
    """

    Options = VisualPrismV2Options
    highest_rate = 1e-4  # in the quick start it does not learn to look at 2e-4 and 5e-4 (docs/ablation.md)

    def maps_levels(self, options: VisualPrismV2Options) -> bool:
        return False

    def add_parts(self, width: int, num_levels: int, options: VisualPrismV2Options) -> None:
        self.width, self.level_norm = width, options.visualprism_level_norm
        self.paths = options.paths
        if "identity" in self.paths:
            self.q_identity = nn.Linear(width, width)
        if "local" in self.paths:
            self.q_local = nn.ModuleList(
                nn.Sequential(depthwise(width, kernel), ChannelNorm(width, eps=NORM_EPS), nn.GELU())
                for kernel in (3, 5)
            )
            self.q_local_proj = nn.Linear(2 * width, width)
        if "wavelet" in self.paths:
            self.q_wavelet = SubbandPath(width, ChannelNorm, options.visualprism_wavelet)
            self.q_wavelet_proj = nn.Linear(4 * width, width)
        self.make_fusion(width)
        self.k_mix = nn.Sequential(nn.Linear(num_levels * width, width), nn.GELU())
        self.v_mix = nn.Sequential(nn.Linear(num_levels * width, width), nn.GELU())
        self.k_branches = Branches(width, 7) if options.visualprism_hkve else None
        self.v_branches = Branches(width, 3) if options.visualprism_hkve else None
        self.v_positions = RegionGains(width) if options.visualprism_positions else None
        self.shortcut_gain = nn.Parameter(torch.zeros(width)) if options.visualprism_shortcut else None

    def wavelet_path(self) -> SubbandPath:
        return self.q_wavelet

    def normed(self, levels: Tensor) -> Tensor:
        """Each level of float[B, N, L*C] with mean 0 and variance 1 over its channels."""
        if not self.level_norm:
            return levels
        apart = levels.unflatten(-1, (-1, self.width))
        return nn.functional.layer_norm(apart, (self.width,), eps=NORM_EPS).flatten(-2)

    def path_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weight and bias of each path's linear map, float[E, ...] and float[E]."""
        maps = {}
        if "identity" in self.paths:
            maps["identity"] = self.q_identity.weight, self.q_identity.bias
        if "local" in self.paths:
            maps["local"] = self.q_local_proj.weight, self.q_local_proj.bias
        if "wavelet" in self.paths:
            maps["wavelet"] = self.q_wavelet_proj.weight * self.q_wavelet.gains(), self.q_wavelet_proj.bias
        return maps

    def path_queries(self, x: Tensor, scale_factor: int) -> Iterator[Tensor]:
        """As TriplePathCompressor's."""
        form, maps = self.form(), self.path_maps()
        rows = form.path_rows(x, scale_factor, share_low_band=False)
        return (nn.functional.linear(torch.cat(rows[path], dim=-1), *maps[path]) for path in self.paths)

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]; values do not carry their places yet."""
        key, value = self.form().keys_and_values(x_multi, 1)
        return key.view(*x_multi.shape[:2], -1), value.view(*x_multi.shape[:2], -1)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        return self.form()(features.selected, features.levels, scale_factor)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.mlp(self.with_shortcut(self.clip_attn.attend(query, key, value), query))

    def with_shortcut(self, gathered: Tensor, query: Tensor) -> Tensor:
        """What the queries gathered, and their shortcut if there is one; all float[B, M, E]."""
        if self.shortcut_gain is None:
            return gathered
        return torch.addcmul(gathered, self.shortcut_gain, query)

    def form(self) -> MergedVisualPrismV2:
        """The weights as a call uses them."""
        return self.folded() if self.folded_form_serves() else self.fold(products=False)

    def fold(self, products: bool) -> MergedVisualPrismV2:
        return MergedVisualPrismV2(self, products)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.shortcut_gain is not None:
            init.zeros_(self.shortcut_gain)
