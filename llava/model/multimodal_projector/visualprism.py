"""VisualPrism: compress a vision grid by scale_factor**2, guided by frequency priors (SPEC 1).

Queries come from three paths over the selected layer (TPQP), keys and values from several levels (HKVE), and
each query attends within its own region. Attribute names are those of published checkpoints
and belong to the file format.
"""

# Legend: multimodal_projector/base.py

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import downsample, to_maps, to_tokens
from llava.model.multimodal_projector.folding import Foldable
from llava.model.multimodal_projector.norms import NORMS
from llava.model.multimodal_projector.options import option
from llava.model.multimodal_projector.squeeze_excitation import SqueezeExcitation
from llava.model.multimodal_projector.triple_path import TriplePathCompressor, TriplePathOptions, depthwise
from llava.model.multimodal_projector.visualprism_folded import (
    KEY_GLOBAL_GAIN,
    VALUE_GLOBAL_GAIN,
    FoldedVisualPrism,
)
from llava.model.multimodal_projector.wavelet import WaveletPath
from llava.model.vision_config import CommonFields


class MultiScaleConv(nn.Module):
    """Depthwise convolutions of several sizes with norm and GELU, fused by a 1x1 convolution and a norm."""

    def __init__(self, width: int, kernels: tuple[int, ...], norm: type[nn.Module]):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(depthwise(width, kernel), norm(width), nn.GELU()) for kernel in kernels
        )
        self.fusion = nn.Sequential(nn.Conv2d(width * len(kernels), width, 1, bias=False), norm(width))

    def forward(self, maps: Tensor) -> Tensor:
        return self.fusion(torch.cat([conv(maps) for conv in self.convs], dim=1))


@dataclass(frozen=True)
class VisualPrismOptions(TriplePathOptions):
    """The options of TriplePathOptions, and the norm."""

    visualprism_norm: str = option(
        "batch",
        "Norm of visualprism: batch, sync_batch (statistics over all ranks; runs on several ranks use it in "
        "place of batch) or layer.",
        form=lambda norm: norm.removeprefix("sync_"),  # both have the same weights
    )


class VisualPrism(Foldable, TriplePathCompressor):
    """Guide, then compress: turns G*G patches into (G/s)**2 tokens.

    The grid side is read at run time and no parameter depends on s. So one module works for every s, and for
    every grid that s divides. In evaluation the function is computed from folded weights.

    Args: as RegionCompressor, with VisualPrismOptions.
    Raises:
        UserError: if a path, the wavelet or the norm is unknown, or the heads do not divide E.
    """

    Options = VisualPrismOptions

    def maps_levels(self, options: VisualPrismOptions) -> bool:
        return not options.visualprism_hkve

    def add_parts(self, width: int, num_levels: int, options: VisualPrismOptions) -> None:
        norm = options.visualprism_norm
        if norm not in NORMS:
            raise UserError(f"--visualprism_norm must be one of {', '.join(NORMS)}, got {norm!r}.")
        norm_class = NORMS[norm]
        self.paths = options.paths
        self.hkve = options.visualprism_hkve
        self.folds = norm != "layer"
        # Triple-path query projection
        if "identity" in self.paths:
            self.q_identity_proj = nn.Linear(width, width)
        if "local" in self.paths:
            self.q_local = MultiScaleConv(width, (3, 5), norm_class)
        if "wavelet" in self.paths:
            self.q_freq = nn.Sequential(
                WaveletPath(width, norm_class, options.visualprism_wavelet), nn.Conv2d(width, width, 1)
            )
        self.make_fusion(width)
        # Hierarchical key-value encoding
        if self.hkve:
            self.kv_down_proj = nn.Linear(num_levels * width, width)
            self.k_local = MultiScaleConv(width, (3, 5, 7), norm_class)
            self.k_global = SqueezeExcitation(width, nn.GELU)
            self.v_local = nn.Sequential(depthwise(width, 3), norm_class(width), nn.GELU())
            self.v_global = SqueezeExcitation(width, nn.GELU)

    @classmethod
    def prepare_for_ranks(cls, fields: CommonFields) -> None:
        """Turn batch into sync_batch: running statistics must not depend on the rank that saves them."""
        if fields.visualprism_norm == "batch":  # type: ignore[attr-defined]
            fields.visualprism_norm = "sync_batch"  # type: ignore[attr-defined]

    def wavelet_path(self) -> WaveletPath:
        return self.q_freq[0]

    def path_queries(self, x: Tensor, scale_factor: int) -> Iterator[Tensor]:
        """float[B, N, C] to each path's float[B, M, E], in the order of `paths`.

        Sampling is linear and its weights sum to 1, so it commutes with the 1x1 maps of the identity and
        wavelet paths, which are applied to M positions instead of N. The local path's norm needs its
        statistics over all N.
        """
        maps = to_maps(x)
        paths = {
            "identity": lambda: self.q_identity_proj(to_tokens(downsample(maps, scale_factor))),
            "local": lambda: to_tokens(downsample(self.q_local(maps), scale_factor)),
            "wavelet": lambda: to_tokens(self.q_freq[1](downsample(self.q_freq[0](maps), scale_factor))),
        }
        return (paths[path]() for path in self.paths)

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]."""
        if not self.hkve:
            return super().keys_and_values(x_multi)
        base = to_maps(self.kv_down_proj(x_multi))
        key = self.k_local(base) + base * (KEY_GLOBAL_GAIN * self.k_global.gain(base))
        value = self.v_local(base) + base * (VALUE_GLOBAL_GAIN * self.v_global.gain(base))
        return self.ln_k_1(to_tokens(key)), self.ln_v_1(to_tokens(value))

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        if self.folded_form_serves():
            return self.folded()(features.selected, features.levels, scale_factor)
        return super().compress(features, scale_factor)

    def fold(self, products: bool) -> FoldedVisualPrism:
        return FoldedVisualPrism(self, products)
