"""VisualPrism in its plain form: each step follows the formulas, and none is reordered, folded or shared.

It is slow on purpose. Tests compare it with the golden files, and the package with it.
"""

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.benchmark.plain_visualprism import as_maps


def haar(maps: Tensor) -> list[Tensor]:
    """float[B, C, G, G] to LL, LH, HL, HH with PyWavelets, whose cH and cV are called HL and LH here."""
    low, (horizontal, vertical, diagonal) = pywt.dwt2(maps.detach().numpy(), "haar")
    return [torch.from_numpy(band) for band in (low, vertical, horizontal, diagonal)]


def inverse_haar(bands: list[Tensor]) -> Tensor:
    low, vertical, horizontal, diagonal = (band.detach().numpy() for band in bands)
    return torch.from_numpy(pywt.idwt2((low, (horizontal, vertical, diagonal)), "haar"))


def multi_scale(block: nn.Module, maps: Tensor) -> Tensor:
    parts = []
    for conv in block.convs:
        weight = conv[0].weight
        filtered = F.conv2d(maps, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])
        parts.append(F.gelu(norm(conv[1], filtered)))
    return norm(block.fusion[1], F.conv2d(torch.cat(parts, dim=1), block.fusion[0].weight))


def norm(module: nn.Module, maps: Tensor) -> Tensor:
    """Batch norm with running statistics."""
    shape = (1, -1, 1, 1)
    scaled = (maps - module.running_mean.view(shape)) / (module.running_var.view(shape) + module.eps).sqrt()
    return scaled * module.weight.view(shape) + module.bias.view(shape)


def gate(module: nn.Module, maps: Tensor) -> Tensor:
    first, _, second = module.excite
    pooled = maps.mean(dim=(2, 3))
    hidden = F.gelu(pooled @ first.weight[:, :, 0, 0].T + first.bias)
    return maps * (hidden @ second.weight[:, :, 0, 0].T + second.bias).sigmoid()[:, :, None, None]


@torch.no_grad()
def visualprism(module: nn.Module, x: Tensor, x_multi: Tensor, s: int) -> Tensor:
    """The output float[B, M, D] in evaluation mode of the plain form with a VisualPrism module's weights."""
    maps = as_maps(x)
    identity = as_maps(module.q_identity_proj(x))
    local = multi_scale(module.q_local, maps)
    path = module.q_freq[0]
    filtered = []
    for band, scale in zip(haar(maps), (1.0, 1.2, 1.2, 1.5), strict=True):
        convolved = F.conv2d(band, path.subband_conv.weight, padding=1, groups=band.shape[1])
        filtered.append(F.gelu(norm(path.subband_bn, convolved)) * scale)
    wavelet = F.conv2d(0.5 * inverse_haar(filtered), module.q_freq[1].weight, module.q_freq[1].bias)
    share = module.q_fusion_weights.softmax(0)
    fused = share[0] * identity + share[1] * local + share[2] * wavelet
    side = maps.shape[-1] // s
    fused = F.interpolate(fused, size=(side, side), mode="bilinear", align_corners=False)
    query = module.ln_q_1(module.q_proj_1(fused.flatten(2).transpose(1, 2)))

    base = as_maps(module.kv_down_proj(x_multi))
    key = multi_scale(module.k_local, base) + 0.6 * gate(module.k_global, base)
    weight = module.v_local[0].weight
    value = F.conv2d(base, weight, padding=1, groups=weight.shape[0])
    value = F.gelu(norm(module.v_local[1], value)) + 0.4 * gate(module.v_global, base)
    key, value = (
        layer_norm(maps.flatten(2).transpose(1, 2))
        for layer_norm, maps in ((module.ln_k_1, key), (module.ln_v_1, value))
    )
    return module.mlp(region_attention(module.clip_attn, query, key, value, s))


def region_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, s: int) -> Tensor:
    """torch's own multi-head attention, applied to one region after another."""
    width = query.shape[-1]
    attention = nn.MultiheadAttention(width, module.num_heads, batch_first=True)
    attention.load_state_dict(module.state_dict())
    side = int(query.shape[1] ** 0.5)
    key, value = (part.view(part.shape[0], side * s, side * s, width) for part in (key, value))
    outputs = []
    for token in range(side * side):
        row, column = divmod(token, side)
        window = (slice(None), slice(row * s, row * s + s), slice(column * s, column * s + s))
        region_key, region_value = key[window].flatten(1, 2), value[window].flatten(1, 2)
        outputs.append(attention(query[:, token : token + 1], region_key, region_value)[0])
    return torch.cat(outputs, dim=1)
