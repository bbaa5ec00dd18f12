"""The parts that all forms of VisualPrism share: queries fused from three paths (TPQP, SPEC 1), `inspect`."""

# Legend: multimodal_projector/base.py; P paths, H = ceil(G/2)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import to_maps
from llava.model.multimodal_projector.compressor import RegionCompressor
from llava.model.multimodal_projector.options import ProjectorOptions, option
from llava.model.multimodal_projector.squeeze_excitation import SqueezeExcitation

PATHS = ("identity", "local", "wavelet")  # paths of the queries, in the order of q_fusion_weights


def parse_paths(text: str) -> tuple[str, ...]:
    """Parse --visualprism_paths, names separated by commas in any order. Returns them in the order of PATHS.

    Raises UserError if no path is named, or if one is unknown or named twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names) or not set(names) <= set(PATHS):
        raise UserError(f"--visualprism_paths must be one or more of {', '.join(PATHS)}, got {text!r}.")
    return tuple(path for path in PATHS if path in names)


@dataclass(frozen=True)
class TriplePathOptions(ProjectorOptions):
    """The options that all forms of VisualPrism share; the defaults are those of the published form."""

    visualprism_paths: str = option(
        "identity,local,wavelet",
        "Paths of VisualPrism's queries: any of identity, local and wavelet, separated by commas.",
        form=parse_paths,
    )
    visualprism_tpqp: bool = option(
        True, "Queries from the paths of --visualprism_paths; False: only from the identity path."
    )
    visualprism_hkve: bool = option(
        True,
        "Hierarchical keys and values; False: the two-layer maps of TokenPacker, or no branches in "
        "visualprism_v2.",
    )
    visualprism_wavelet: str = option(
        "haar", "A discrete wavelet of PyWavelets: haar, db2, bior2.2 or another."
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths in use. Raises UserError as parse_paths does."""
        return parse_paths(self.visualprism_paths) if self.visualprism_tpqp else ("identity",)


def depthwise(width: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)


class StackedGates:
    """Stacks the maps of several SqueezeExcitations with GELU, so that one product applies them all."""

    def __init__(self, *gates: SqueezeExcitation):
        layers = [(gate.excite[0], gate.excite[2]) for gate in gates]
        self.maps = [
            (
                torch.stack([layer.weight.flatten(1) for layer in same]).transpose(1, 2),
                torch.stack([layer.bias for layer in same]).unsqueeze(1),
            )
            for same in zip(*layers, strict=True)
        ]

    def gains(self, means: Tensor) -> Tensor:
        """The gains of each gate for the mean of its map: float[gates, B, E] to the same shape."""
        (first, first_bias), (second, second_bias) = self.maps
        hidden = nn.functional.gelu(torch.baddbmm(first_bias, means, first))
        return torch.baddbmm(second_bias, hidden, second).sigmoid()


def to_image_gains(gains: Tensor) -> Tensor:
    """float[B, E] to float[B, 1, 1, 1, 1, E], to multiply maps in the order of regions."""
    return gains[:, None, None, None, None]


class PrismParts(NamedTuple):
    """Intermediate results of a VisualPrism for B images.

    Attributes:
        paths: names of the query paths.
        fusion: float32[P], the learnt weights of the paths; they sum to 1.
        path_norms: float32[B, P, G, G], the norm of each path's output before it is weighted and sampled.
        subband_energy: float32[B, 4, H, H], the squares of LL, LH, HL, HH of the input, summed over channels;
            None without the wavelet path.
        region_attention: {s: float32[B, g, g, h, s, s]}, the attention of each token to its patches.
    """

    paths: tuple[str, ...]
    fusion: Tensor
    path_norms: Tensor
    subband_energy: Tensor | None
    region_attention: dict[int, Tensor]


class TriplePathCompressor(RegionCompressor):
    """A RegionCompressor whose queries are a learnt mixture of paths over the selected layer.

    A subclass sets `paths`, creates their submodules and then calls `make_fusion`. Its `wavelet_path` returns
    the WaveletPath, and its `path_queries` the outputs of the paths.
    """

    paths: tuple[str, ...]

    def make_fusion(self, width: int) -> None:
        """Create the weights of the mixture, and the linear map of the mixture to float[..., E]."""
        self.q_fusion_weights = nn.Parameter(torch.full((len(self.paths),), 1 / len(self.paths)))
        self.q_proj_1 = nn.Linear(width, width, bias=False)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.constant_(self.q_fusion_weights, 1 / len(self.paths))

    def wavelet_path(self) -> nn.Module:
        """The WaveletPath, if there is one."""
        raise NotImplementedError

    def path_queries(self, x: Tensor, scale_factor: int) -> Iterator[Tensor]:
        """float[B, N, C] to each path's float[B, M, E], in the order of `paths`."""
        raise NotImplementedError

    def queries(self, x: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, C] to float[B, M, E]."""
        share = self.q_fusion_weights.softmax(dim=0)
        outputs = self.path_queries(x, scale_factor)
        fused = sum(weight * output for weight, output in zip(share, outputs, strict=True))
        return self.ln_q_1(self.q_proj_1(fused))

    @torch.no_grad()
    def inspect(self, features: VisionFeatures, scale_factors: Sequence[int]) -> PrismParts:
        """Return intermediate results, to be visualised. The module must be in evaluation mode.

        Raises UserError if N is not a square or an s does not divide its side.
        """
        assert not self.training, "batch norms would learn from what is only looked at"
        features = features.to(self.q_proj_1.weight.dtype)
        maps, energy = to_maps(features.selected), None
        x, x_multi = self.prepared(features)[:2]
        if "wavelet" in self.paths:
            energy = self.wavelet_path().bands(maps).float().square().sum(dim=1)
        norms = [to_maps(output).float().norm(dim=1) for output in self.path_queries(x, 1)]
        key, attention = self.keys_and_values(x_multi)[0], {}
        for s in scale_factors:
            side = self.output_grid(maps.shape[-1], s)
            weights = self.clip_attn.weights(self.queries(x, s), key, s)
            attention[s] = weights.float().view(len(x), side, side, -1, s, s)
        fusion = self.q_fusion_weights.float().softmax(dim=0)
        return PrismParts(self.paths, fusion, torch.stack(norms, dim=1), energy, attention)
