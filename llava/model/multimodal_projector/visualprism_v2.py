"""VisualPrism v2: three query paths, and keys and values whose channels are mixed.

What differs from the published form, and why (docs/ablation.md has the measurements):
- The wavelet path passes on the sub-bands themselves. If they were transformed back and sampled, all but LL
  would be lost at s = 2.
- Every level is normalised over its channels, unless --mm_projector_input_norm is False.
- Keys and values are each a linear map of all levels and a GELU; the attention's own projections act as their
  second layer. In HKVE a single linear map is followed by depthwise convolutions, which mix no channels.
- HKVE's local and global branches are added as residuals whose gains start at zero.
- Values carry their position in the region: each channel has a gain over the region's cosine basis, which
  starts at one. So a token keeps what a plain weighted mean over its patches would lose.
- The norms are layer norms, without batch statistics. So training and evaluation compute the same, on any
  number of ranks.
"""

# Legend: multimodal_projector/base.py

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import NORM_EPS, layers_normed
from llava.model.multimodal_projector.folding import Foldable
from llava.model.multimodal_projector.norms import ChannelNorm
from llava.model.multimodal_projector.options import ProjectorOptions, option
from llava.model.multimodal_projector.squeeze_excitation import SqueezeExcitation
from llava.model.multimodal_projector.triple_path import TriplePathCompressor, TriplePathOptions, depthwise
from llava.model.multimodal_projector.visualprism_v2_merged import MergedVisualPrismV2
from llava.model.multimodal_projector.wavelet import SubbandPath

COSINES = 4  # cosines along a side; the basis is complete for regions of up to 4x4 patches


def cosine_basis(scale_factor: int, device: torch.device) -> Tensor:
    """float32[s*s, COSINES**2]: the two-dimensional cosines at the patches of a region, row-major.

    They are those of an unscaled type-II discrete cosine transform (Ahmed, Natarajan and Rao 1974).
    """
    centres = (torch.arange(scale_factor, device=device) + 0.5) / scale_factor
    line = torch.cos(torch.pi * centres[:, None] * torch.arange(COSINES, device=device))
    return torch.einsum("ia,jb->ijab", line, line).reshape(scale_factor**2, COSINES**2)


class RegionGains(nn.Module):
    """A factor, initially one, for each patch of a region and each channel; the weights fit every s."""

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
    """HKVE's local and global branches for keys or for values, as a residual that is initially zero."""

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
    """The options of TriplePathOptions, and those that only this form has."""

    visualprism_positions: bool = option(
        True, "Scale the values by learnt gains for each position in the region (only visualprism_v2)."
    )
    visualprism_shortcut: bool = option(
        False,
        "Add the query to the attention's output, with a gain that starts at zero (only visualprism_v2).",
    )


class VisualPrismV2(Foldable, TriplePathCompressor):
    """Turns G*G patches into (G/s)**2 tokens; no parameter depends on s or G.

    Args: as RegionCompressor, with VisualPrismV2Options; visualprism_hkve adds the local and global branches.
    Raises:
        UserError: if a path or the wavelet is unknown, or the heads do not divide E.
    """

    Options = VisualPrismV2Options
    norms_input = norms_late = True
    highest_rate = 1e-4  # at 2e-4 and 5e-4 the quick start does not learn to use the image (docs/ablation.md)

    @classmethod
    def options(cls, fields: object) -> ProjectorOptions:
        """As Projector.options. Version 0.1 wrote mm_projector_input_norm as visualprism_level_norm."""
        given, earlier = super().options(fields), getattr(fields, "visualprism_level_norm", None)
        if earlier is None or getattr(fields, "mm_projector_input_norm", None) is not None:
            return given
        return dataclasses.replace(given, mm_projector_input_norm=earlier)

    def maps_levels(self, options: VisualPrismV2Options) -> bool:
        return False

    def add_parts(self, width: int, num_levels: int, options: VisualPrismV2Options) -> None:
        self.width, self.paths = width, options.paths
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

    def normed(self, states: Tensor) -> Tensor:
        """float[B, N, C] or float[B, N, L*C] to the same shape, normalised layer by layer if norms_input."""
        return layers_normed(states, self.width) if self.norms_input else states

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
        """As in TriplePathCompressor."""
        form, maps = self.form(), self.path_maps()
        rows = form.path_rows(x, scale_factor, share_low_band=False)
        return (nn.functional.linear(torch.cat(rows[path], dim=-1), *maps[path]) for path in self.paths)

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]; the values lack their position gains."""
        key, value = self.form().keys_and_values(x_multi, 1)
        return key.view(*x_multi.shape[:2], -1), value.view(*x_multi.shape[:2], -1)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        return self.form()(features.selected, features.levels, scale_factor)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.mlp(self.with_shortcut(self.clip_attn.attend(query, key, value), query))

    def with_shortcut(self, gathered: Tensor, query: Tensor) -> Tensor:
        """Add the queries, times the shortcut's gain if there is one, to `gathered`; all float[B, M, E]."""
        if self.shortcut_gain is None:
            return gathered
        return torch.addcmul(gathered, self.shortcut_gain, query)

    def form(self) -> MergedVisualPrismV2:
        """The form of the weights that a call uses: the evaluation form, or one made for this call."""
        return self.folded() if self.folded_form_serves() else self.fold(products=False)

    def fold(self, products: bool) -> MergedVisualPrismV2:
        return MergedVisualPrismV2(self, products)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.shortcut_gain is not None:
            init.zeros_(self.shortcut_gain)
