"""VisualPrism's evaluation form: the same function with less work, from folded weights (SPEC 1).

- Each batch norm is folded into its convolution.
- Sampling commutes with 1x1 maps, so the maps of the paths, the fusion weights and the query projection
  become one matrix over the sampled paths. It is applied to M positions instead of N, and once instead of
  four times.
- The 1x1 map over the branches of the keys is one product, and both global gates are computed together.
- Keys and values are written in the order of regions.
- The out-projection of the attention is multiplied into the first map of the MLP.
"""

# Legend: multimodal_projector/base.py

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_projector.base import downsample, to_maps, to_tokens
from llava.model.multimodal_projector.folding import FoldedAttention, product
from llava.model.multimodal_projector.region_order import (
    by_region,
    gelu_by_region,
    region_rows,
    regions,
    room_for,
    writes_in_place,
)
from llava.model.multimodal_projector.triple_path import StackedGates, to_image_gains

KEY_GLOBAL_GAIN = 0.6
VALUE_GLOBAL_GAIN = 0.4

Kernel = tuple[Tensor, Tensor]  # weight and bias of a convolution


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Kernel:
    """A bias-free convolution and the evaluation-mode norm after it, as one convolution."""
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * gain.view(-1, 1, 1, 1), norm.bias - norm.running_mean * gain


def depthwise_conv(maps: Tensor, kernel: Kernel, stride: int = 1, padding: int | None = None) -> Tensor:
    """Depthwise convolution; by default the output has one sample for each position."""
    weight, bias = kernel
    place = (stride, weight.shape[-1] // 2 if padding is None else padding)
    if torch.compiler.is_compiling():  # cuDNN adds a bias in an extra pass, a compiler within the GELU
        return F.conv2d(maps, weight, None, *place, groups=weight.shape[0]) + bias.view(-1, 1, 1)
    return F.conv2d(maps, weight, bias, *place, groups=weight.shape[0])


def sampled_depthwise_gelu(maps: Tensor, kernel: Kernel, scale_factor: int) -> Tensor:
    """Depthwise convolution, GELU, sampling. An odd s samples block middles; only these are computed."""
    if scale_factor % 2 == 0:
        return downsample(F.gelu(depthwise_conv(maps, kernel)), scale_factor)
    weight, _ = kernel
    margin = weight.shape[-1] // 2 - scale_factor // 2  # how far the first middle's window is over the edge
    if margin < 0:
        maps, margin = maps[..., -margin:, -margin:], 0
    return F.gelu(depthwise_conv(maps, kernel, scale_factor, margin))


class FoldedVisualPrism:
    """The folded weights of a VisualPrism at one moment. It is not a module, so it is not saved or trained.

    Args:
        prism: the VisualPrism.
        products: as in Foldable.fold.
    """

    def __init__(self, prism: nn.Module, products: bool = True):
        self.prism = prism
        self.fold_queries(products)
        if prism.hkve:
            self.k_branches = [fold_norm(conv, norm) for conv, norm, _ in prism.k_local.convs]
            weight, self.k_bias = fold_norm(*prism.k_local.fusion)
            self.k_weight = weight.flatten(1)
            self.v_branch = fold_norm(prism.v_local[0], prism.v_local[1])
            self.gates = StackedGates(prism.k_global, prism.v_global)
        self.attention = FoldedAttention(prism.clip_attn, prism.mlp[0]) if products else None

    def fold_queries(self, products: bool) -> None:
        """Fold the maps of all paths into one, and into a second one for use where LL suffices."""
        prism = self.prism
        maps, biases = {}, {}
        if "identity" in prism.paths:
            maps["identity"], biases["identity"] = prism.q_identity_proj.weight, prism.q_identity_proj.bias
        if "local" in prism.paths:
            self.q_branches = [fold_norm(conv, norm) for conv, norm, _ in prism.q_local.convs]
            weight, biases["local"] = fold_norm(*prism.q_local.fusion)
            maps["local"] = weight.flatten(1)
        if "wavelet" in prism.paths:
            path, projection = prism.q_freq
            maps["wavelet"], biases["wavelet"] = projection.weight.flatten(1), projection.bias
            weight, bias = self.subband = fold_norm(path.subband_conv, path.subband_bn)
            analysis, self.low_band_gain = (gain.to(weight.dtype) for gain in path.low_band_gains())
            self.low_subband = analysis * weight, bias
        share = dict(zip(prism.paths, prism.q_fusion_weights.softmax(dim=0), strict=True))
        weights = {path: share[path] * maps[path] for path in prism.paths}
        self.query_bias = sum(share[path] * biases[path] for path in prism.paths)
        if products:
            to_query = prism.q_proj_1.weight
            weights = {path: product(to_query, weight) for path, weight in weights.items()}
            self.query_bias = product(to_query, self.query_bias)
        self.to_query = nn.Identity() if products else prism.q_proj_1
        self.query_weight = torch.cat(list(weights.values()), dim=1)
        if "wavelet" in prism.paths:
            weights["wavelet"] = self.low_band_gain * weights["wavelet"]
            self.low_query_weight = torch.cat(list(weights.values()), dim=1)

    def __call__(self, x: Tensor, x_multi: Tensor, scale_factor: int) -> Tensor:
        """x float[B, N, C] and x_multi float[B, N, L*C] to float[B, M, D]."""
        if self.prism.hkve:
            key, value = self.keys_and_values(x_multi, scale_factor)
        else:
            key, value = (regions(part, scale_factor) for part in self.prism.keys_and_values(x_multi))
        query = self.queries(x, scale_factor)
        if self.attention is None:
            return self.prism.attend(query, key, value)
        return self.prism.mlp[1:](self.attention(query, key, value))

    def queries(self, x: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, C] to float[B, M, E]."""
        prism, maps = self.prism, to_maps(x)
        low_band = "wavelet" in prism.paths and prism.wavelet_path().samples_low_band(scale_factor)
        sampled = []
        if "identity" in prism.paths or low_band:
            means = downsample(maps, scale_factor)
        if "identity" in prism.paths:
            sampled.append(means)
        if "local" in prism.paths:
            sampled += [sampled_depthwise_gelu(maps, kernel, scale_factor) for kernel in self.q_branches]
        if low_band:
            sampled.append(F.gelu(depthwise_conv(means, self.low_subband)))
        elif "wavelet" in prism.paths:
            restored = prism.wavelet_path().transform(
                maps, lambda band: F.gelu(depthwise_conv(band, self.subband))
            )
            sampled.append(downsample(restored, scale_factor))
        tokens = torch.cat([to_tokens(part) for part in sampled], dim=-1)
        weight = self.low_query_weight if low_band else self.query_weight
        return prism.ln_q_1(self.to_query(F.linear(tokens, weight, self.query_bias)))

    def keys_and_values(self, x_multi: Tensor, scale_factor: int) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B*M, s*s, E], grouped by region."""
        base = self.prism.kv_down_proj(x_multi)
        maps, means = to_maps(base), base.mean(dim=1)
        key_gain, value_gain = map(to_image_gains, self.gates.gains(means.expand(2, *means.shape)))
        return self.keys(maps, key_gain, scale_factor), self.values(maps, value_gain, scale_factor)

    def keys(self, maps: Tensor, gain: Tensor, scale_factor: int) -> Tensor:
        """float[B, E, G, G] and the gain of the global branch to float[B*M, s*s, E], grouped by region."""
        local = (depthwise_conv(maps, kernel) for kernel in self.k_branches)
        local = region_rows(gelu_by_region(local, len(self.k_branches), scale_factor))
        cells = by_region(maps.permute(0, 2, 3, 1), scale_factor)
        room = room_for(cells, *cells.shape)
        key = region_rows(torch.addcmul(self.k_bias, cells, gain, value=KEY_GLOBAL_GAIN, out=room))
        rows = key.flatten(0, 1)
        out = None if room is None else rows
        rows = torch.addmm(rows, local.flatten(0, 1), self.k_weight.T, out=out)
        return self.prism.ln_k_1(rows.view_as(key))

    def values(self, maps: Tensor, gain: Tensor, scale_factor: int) -> Tensor:
        """As keys(), for the values."""
        value = gelu_by_region([depthwise_conv(maps, self.v_branch)], 1, scale_factor)
        cells = by_region(maps.permute(0, 2, 3, 1), scale_factor)
        out = value if writes_in_place(value) else None
        value = torch.addcmul(value, cells, gain, value=VALUE_GLOBAL_GAIN, out=out)
        return self.prism.ln_v_1(region_rows(value))
