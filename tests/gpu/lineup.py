"""Every projector at a realistic width, with inputs for which no choice is close."""

# Legend: multimodal_projector/base.py

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.builder import PROJECTORS, VisionFields, build_projector
from llava.model.multimodal_projector.pruning import CONTEXTUAL_SHARE, split_by_attention

# C, G and the patches that pruning keeps; small if the tests are tried without a GPU
WIDTH, GRID, NUM_KEPT = (32, 12, 20) if os.environ.get("LLAVA_GPU_TESTS_DEVICE") == "cpu" else (256, 24, 64)
LEVELS = 4
HEADS, HEAD_WIDTH = 4, 64
# Projectors whose computation depends on the scale factor, with several; all others are tested with one
SCALES = {"visualprism": (2, 3, 4), "visualprism_v2": (2, 3, 4), "tokenpacker": (2, 3)}
CASES = [
    (name, scale_factor) for name in ("mlp2x_gelu", *PROJECTORS) for scale_factor in SCALES.get(name, (2,))
]


def make(name: str, scale_factor: int) -> nn.Module:
    """A projector in float32 on the CPU; no weight, gain or running statistic has its initial value."""
    fields = VisionFields(
        mm_projector_type=name,
        mm_hidden_size=WIDTH,
        mm_vision_levels=list(range(LEVELS)),
        mm_vision_config={"image_size": GRID * 14, "patch_size": 14},
        scale_factor=scale_factor,
        num_visual_tokens=NUM_KEPT,
    )
    module = build_projector(fields, WIDTH)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2)
    return module


def make_features(name: str, batch: int = 2) -> VisionFeatures:
    """Features in float32 on the CPU; attention and keys decide clearly which patches are kept and merged."""
    attention = torch.stack([torch.randperm(GRID * GRID) for _ in range(batch)]) + 1.0
    attention = attention / attention.sum(dim=1, keepdim=True)
    return VisionFeatures(
        torch.randn(batch, GRID * GRID, WIDTH),
        torch.randn(batch, GRID * GRID, LEVELS * WIDTH),
        attention,
        clear_keys(name, attention),
    )


def clear_keys(name: str, attention: Tensor) -> Tensor:
    """float[B, N, h, d]: the key of each merged patch is nearly the key of a randomly chosen centre.

    Between random keys, a choice may be so close that rounding decides it. Two devices may then differ.
    """
    batch, num_patches = attention.shape
    if name == "visionzip":
        num_centres = round(CONTEXTUAL_SHARE * NUM_KEPT)
        rest = split_by_attention(attention, NUM_KEPT - num_centres)[1]
        places = torch.arange(num_centres) * rest.shape[1] // num_centres
        centres = rest[:, places]
    else:
        centres = split_by_attention(attention, NUM_KEPT)[0]
    keys = torch.randn(batch, num_patches, HEADS, HEAD_WIDTH)
    for row, own in zip(keys, centres, strict=True):
        chosen = own[torch.randint(len(own), (num_patches,))]
        chosen[own] = own
        row.copy_(row[chosen] + 0.05 * torch.randn_like(row))
    return keys
