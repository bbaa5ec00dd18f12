"""VisualPrism: compress a vision grid by scale_factor**2, guided by frequency priors (SPEC 1).

Queries come from three paths over the selected layer (TPQP), keys and values from several levels (HKVE), and
each query attends within its own region. Attribute names are those of published checkpoints: a file format.
"""

# Legend: multimodal_projector/base.py

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Projector, compressed_side, grid_side
from llava.model.multimodal_projector.region_attention import RegionAttention
from llava.model.multimodal_projector.wavelet import WaveletPath
from llava.model.vision_config import VisionFields

KEY_GLOBAL_GAIN = 0.6
VALUE_GLOBAL_GAIN = 0.4
NORM_EPS = 1e-6
HEAD_WIDTH = 128  # of the default head count


def depthwise(width: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)


def to_maps(features: Tensor) -> Tensor:
    """float[B, N, C], row-major, to float[B, C, G, G]; a view."""
    return features.transpose(1, 2).unflatten(2, (grid_side(features.shape[1]),) * 2)


def to_tokens(maps: Tensor) -> Tensor:
    """float[B, C, G, G] to float[B, N, C], row-major; a view."""
    return maps.flatten(2).transpose(1, 2)


def downsample(maps: Tensor, side: int) -> Tensor:
    """float[B, C, G, G] to float[B, C, side, side], bilinear, computed in float32."""
    sampled = nn.functional.interpolate(maps.float(), size=(side, side), mode="bilinear", align_corners=False)
    return sampled.to(maps.dtype)


class MultiScaleConv(nn.Module):
    """Depthwise convolutions of several sizes with norm and GELU, fused by a 1x1 convolution and a norm."""

    def __init__(self, in_width: int, out_width: int, kernels: tuple[int, ...]):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(depthwise(in_width, kernel), nn.BatchNorm2d(in_width), nn.GELU())
            for kernel in kernels
        )
        self.fusion = nn.Sequential(
            nn.Conv2d(in_width * len(kernels), out_width, 1, bias=False), nn.BatchNorm2d(out_width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.fusion(torch.cat([conv(maps) for conv in self.convs], dim=1))


class GlobalGate(nn.Module):
    """y * sigmoid(W2 GELU(W1 mean(y))): channels weighed by the whole image (squeeze and excitation)."""

    def __init__(self, width: int):
        super().__init__()
        self.excite = nn.Sequential(
            nn.Conv2d(width, width // 4, 1), nn.GELU(), nn.Conv2d(width // 4, width, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.excite(maps.mean(dim=(2, 3), keepdim=True)).sigmoid()


class VisualPrism(Projector):
    """Guide, then compress: G*G patches to (G/s)**2 tokens.

    The grid side is read at run time and no parameter depends on s, so one module serves every resolution
    that s divides, and every s.

    Args:
        vision_width: C.
        llm_width: D.
        scale_factor: s; forward may override it.
        num_levels: L.
        width: E, by default C.
        num_heads: h, by default E // 128, at least 1.
    """

    needs_levels = True

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        scale_factor: int,
        num_levels: int = 4,
        width: int | None = None,
        num_heads: int | None = None,
    ):
        super().__init__()
        width = width or vision_width
        self.scale_factor = scale_factor
        # Triple-path query projection
        self.q_identity_proj = nn.Linear(vision_width, width)
        self.q_local = MultiScaleConv(vision_width, width, kernels=(3, 5))
        self.q_freq = nn.Sequential(WaveletPath(vision_width), nn.Conv2d(vision_width, width, 1))
        self.q_fusion_weights = nn.Parameter(torch.full((3,), 1 / 3))  # identity, local, wavelet
        self.q_proj_1 = nn.Linear(width, width, bias=False)
        # Hierarchical key-value encoding
        self.kv_down_proj = nn.Linear(num_levels * vision_width, width)
        self.k_local = MultiScaleConv(width, width, kernels=(3, 5, 7))
        self.k_global = GlobalGate(width)
        self.v_local = nn.Sequential(depthwise(width, 3), nn.BatchNorm2d(width), nn.GELU())
        self.v_global = GlobalGate(width)
        # Compressor
        self.ln_q_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_k_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_v_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.clip_attn = RegionAttention(width, num_heads or max(1, width // HEAD_WIDTH))
        self.mlp = nn.Sequential(nn.Linear(width, llm_width), nn.GELU(), nn.Linear(llm_width, llm_width))
        self.reset_parameters()

    @classmethod
    def from_fields(cls, fields: VisionFields, llm_width: int) -> "VisualPrism":
        num_levels = len(fields.mm_vision_levels)
        return cls(fields.mm_hidden_size, llm_width, fields.scale_factor, num_levels)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    init.zeros_(module.bias)
        init.constant_(self.q_fusion_weights, 1 / 3)

    def output_grid(self, grid: int) -> int:
        return compressed_side(grid, self.scale_factor)

    def queries(self, x: Tensor, side: int) -> Tensor:
        """float[B, N, C] to float[B, side*side, E].

        Sampling is linear and its weights sum to 1, so it commutes with the 1x1 maps of the identity
        and wavelet paths: they see M positions instead of N. The local path's norm needs its statistics
        over all N.
        """
        maps = to_maps(x)
        identity = self.q_identity_proj(to_tokens(downsample(maps, side)))
        local = to_tokens(downsample(self.q_local(maps), side))
        wavelet_path, wavelet_proj = self.q_freq
        wavelet = to_tokens(wavelet_proj(downsample(wavelet_path(maps), side)))
        share = self.q_fusion_weights.softmax(dim=0)
        return self.ln_q_1(self.q_proj_1(share[0] * identity + share[1] * local + share[2] * wavelet))

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]."""
        base = to_maps(self.kv_down_proj(x_multi))
        key = self.k_local(base) + KEY_GLOBAL_GAIN * self.k_global(base)
        value = self.v_local(base) + VALUE_GLOBAL_GAIN * self.v_global(base)
        return self.ln_k_1(to_tokens(key)), self.ln_v_1(to_tokens(value))

    def forward(self, features: VisionFeatures, scale_factor: int | None = None) -> Tensor:
        """Compress one grid.

        Args:
            features: selected float[B, N, C] and levels float[B, N, L*C], row-major, class token removed.
            scale_factor: s of this call, by default the module's own.
        Returns:
            float[B, M, D].
        Raises:
            ValueError: if N is not a square or s does not divide its side.
        """
        x, x_multi = features
        scale_factor = scale_factor or self.scale_factor
        side = compressed_side(grid_side(x.shape[1]), scale_factor)
        key, value = self.keys_and_values(x_multi)
        return self.mlp(self.clip_attn(self.queries(x, side), key, value, scale_factor))
