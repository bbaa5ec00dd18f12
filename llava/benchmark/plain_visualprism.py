"""VisualPrism computed as published; benchmarks and tests compare our implementation with it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_projector.region_attention import regions
from llava.model.multimodal_projector.visualprism import VisualPrism


class PlainVisualPrism(VisualPrism):
    """A VisualPrism with the same weights and function, which computes every map at every position.

    Attention is torch's, and nothing is folded. The form is the same in evaluation and in training.
    """

    def compress(self, features, scale_factor):
        (x, x_multi), s = features[:2], scale_factor
        maps = as_maps(x)
        paths = {
            "identity": lambda: as_maps(self.q_identity_proj(x)),
            "local": lambda: self.q_local(maps),
            "wavelet": lambda: self.q_freq[1](wavelet_path(self.q_freq[0], maps)),
        }
        share = self.q_fusion_weights.softmax(0)
        fused = sum(share[i] * paths[path]() for i, path in enumerate(self.paths))
        side = maps.shape[-1] // s
        fused = F.interpolate(fused, size=(side, side), mode="bilinear", align_corners=False)
        query = self.ln_q_1(self.q_proj_1(fused.flatten(2).transpose(1, 2)))
        key, value = self.keys_and_values(x_multi)
        attention = self.clip_attn
        attended, _ = F.multi_head_attention_forward(
            query.reshape(1, -1, query.shape[-1]),
            regions(key, s).transpose(0, 1),
            regions(value, s).transpose(0, 1),
            query.shape[-1],
            attention.num_heads,
            attention.in_proj_weight,
            attention.in_proj_bias,
            None,
            None,
            False,
            0.0,
            attention.out_proj.weight,
            attention.out_proj.bias,
            need_weights=False,
        )
        return self.mlp(attended.view_as(query))


def wavelet_path(path: nn.Module, maps: Tensor) -> Tensor:
    """Run the wavelet path. Haar's transform is done by strided convolutions; others are left as they are."""
    wavelet = path.wavelet
    if wavelet.name != "haar":
        return path(maps)
    bands = F.conv2d(maps.flatten(0, 1).unsqueeze(1), wavelet.dec_filter, stride=2)
    bands = bands.unflatten(0, maps.shape[:2]).unbind(2)
    filtered = torch.stack([F.gelu(path.subband_bn(path.subband_conv(band))) for band in bands], dim=2)
    filtered = filtered * path.subband_scale.view(4, 1, 1)
    restored = F.conv_transpose2d(filtered.flatten(0, 1), wavelet.rec_filter, stride=2)
    return restored.squeeze(1).unflatten(0, maps.shape[:2])


def as_maps(tokens: Tensor) -> Tensor:
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)
