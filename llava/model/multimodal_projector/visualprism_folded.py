"""VisualPrism's evaluation form: the same function for less, constant maps folded beforehand (SPEC 1).

- Each batch norm is folded into its convolution.
- Sampling commutes with 1x1 maps, so the maps of the paths, the fusion weights and the query projection
  become one matrix over the sampled paths: M positions instead of N, once instead of four times.
- The out-projection of the attention is multiplied into the first map of the MLP.
"""

# Legend: multimodal_projector/base.py

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_projector.base import downsample, to_maps, to_tokens

Kernel = tuple[Tensor, Tensor]  # weight and bias of a convolution


def fingerprint(module: nn.Module) -> tuple:
    """Changes when a parameter or buffer is written to, replaced or moved; costs no device work."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors)


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Kernel:
    """A bias-free convolution and the evaluation-mode norm after it, as one convolution."""
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * gain.view(-1, 1, 1, 1), norm.bias - norm.running_mean * gain


def depthwise_gelu(maps: Tensor, kernel: Kernel) -> Tensor:
    weight, bias = kernel
    return F.gelu(F.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0]))


def sampled_depthwise_gelu(maps: Tensor, kernel: Kernel, scale_factor: int) -> Tensor:
    """downsample(depthwise_gelu(maps)); an odd s samples block middles, and is convolved there alone."""
    if scale_factor % 2 == 0:
        return downsample(depthwise_gelu(maps, kernel), scale_factor)
    weight, bias = kernel
    margin = weight.shape[-1] // 2 - scale_factor // 2  # how far the first middle's window is beyond the edge
    if margin < 0:
        maps, margin = maps[..., -margin:, -margin:], 0
    return F.gelu(F.conv2d(maps, weight, bias, scale_factor, margin, groups=weight.shape[0]))


class FoldedVisualPrism:
    """A VisualPrism's weights at one moment, folded; no module, so nothing of it is saved or trained."""

    @torch.inference_mode(False)  # made in inference mode its tensors could serve no gradient later
    @torch.no_grad()
    def __init__(self, prism: nn.Module):
        self.prism = prism
        maps, biases = [], []
        if "identity" in prism.paths:
            maps.append(prism.q_identity_proj.weight)
            biases.append(prism.q_identity_proj.bias)
        if "local" in prism.paths:
            self.q_branches = [fold_norm(conv, norm) for conv, norm, _ in prism.q_local.convs]
            weight, bias = fold_norm(*prism.q_local.fusion)
            maps.append(weight.flatten(1))
            biases.append(bias)
        if "wavelet" in prism.paths:
            path, projection = prism.q_freq
            self.subband = fold_norm(path.subband_conv, path.subband_bn)
            maps.append(projection.weight.flatten(1))
            biases.append(projection.bias)
        share = prism.q_fusion_weights.softmax(dim=0)
        to_query = prism.q_proj_1.weight
        self.query_weight = to_query @ torch.cat(
            [s * part for s, part in zip(share, maps, strict=True)], dim=1
        )
        self.query_bias = to_query @ sum(s * part for s, part in zip(share, biases, strict=True))
        if prism.hkve:
            self.k_branches = [fold_norm(conv, norm) for conv, norm, _ in prism.k_local.convs]
            weight, self.k_bias = fold_norm(*prism.k_local.fusion)
            self.k_weights = weight.flatten(1).chunk(len(self.k_branches), dim=1)
            self.v_branch = fold_norm(prism.v_local[0], prism.v_local[1])
        out_proj, first = prism.clip_attn.out_proj, prism.mlp[0]
        self.mlp_weight = first.weight @ out_proj.weight
        self.mlp_bias = first.weight @ out_proj.bias + first.bias

    def __call__(self, x: Tensor, x_multi: Tensor, scale_factor: int) -> Tensor:
        """x float[B, N, C], x_multi float[B, N, L*C] to float[B, M, D]."""
        prism = self.prism
        query = self.queries(x, scale_factor)
        key, value = self.keys_and_values(x_multi) if prism.hkve else prism.keys_and_values(x_multi)
        weights = prism.clip_attn.weights(query, key, scale_factor)
        gathered = prism.clip_attn.gather(weights, value, scale_factor)
        tokens = prism.mlp[2](F.gelu(F.linear(gathered, self.mlp_weight, self.mlp_bias)))
        return tokens.unflatten(0, query.shape[:2])

    def queries(self, x: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, C] to float[B, M, E]."""
        maps = to_maps(x)
        sampled = []
        if "identity" in self.prism.paths:
            sampled.append(downsample(maps, scale_factor))
        if "local" in self.prism.paths:
            sampled += [sampled_depthwise_gelu(maps, kernel, scale_factor) for kernel in self.q_branches]
        if "wavelet" in self.prism.paths:
            path = self.prism.q_freq[0]
            sampled.append(path.sampled(maps, scale_factor, lambda band: depthwise_gelu(band, self.subband)))
        tokens = to_tokens(torch.cat(sampled, dim=1))
        return self.prism.ln_q_1(F.linear(tokens, self.query_weight, self.query_bias))

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]."""
        prism = self.prism
        base = prism.kv_down_proj(x_multi)
        maps = to_maps(base)
        key = torch.addcmul(self.k_bias, base, to_tokens(prism.key_gain(maps)))
        rows = key.flatten(0, 1)
        for kernel, weight in zip(self.k_branches, self.k_weights, strict=True):
            rows = torch.addmm(rows, to_tokens(depthwise_gelu(maps, kernel)).flatten(0, 1), weight.T)
        value = torch.addcmul(
            to_tokens(depthwise_gelu(maps, self.v_branch)), base, to_tokens(prism.value_gain(maps))
        )
        return prism.ln_k_1(rows.view_as(key)), prism.ln_v_1(value)
