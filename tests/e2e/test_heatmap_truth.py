"""A model that attends to what is white lights the white pixels: each projector, s and layout of tiles.

The tower gives each patch its mean colour; the projector is real, and a token that it changes most between a
black picture and one with a white box is a white token.
"""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.visualization.answer import image_attention
from llava.visualization.plots import paint_tokens

GRID = tiny.LLAVA_SIZE // tiny.LLAVA_PATCH_SIZE
LAYOUTS = {
    "square": {"image_aspect_ratio": "square"},
    "pad": {"image_aspect_ratio": "pad"},
    "slice": {"image_aspect_ratio": "slice"},
    "anyres": {"image_aspect_ratio": "anyres"},
    "anyres-unpad": {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
}
# No cabstractor and resampler: with random weights their tokens gather from the whole image
COMPRESSING = ["tokenpacker", "avgpool", "pixel_shuffle", "ldpv2"]
CASES = [
    *((kind, 1, layout) for kind in ("linear", "mlp2x_gelu") for layout in LAYOUTS),
    *((kind, s, layout) for kind in COMPRESSING for s in (2, 3) for layout in ("square", "slice", "anyres")),
    *(("visualprism", s, layout) for s in (1, 2, 3) for layout in LAYOUTS),
]


def white_tokens_of(model):
    """model.encode_images with a tower that sees colours alone; bool[V, M] as features of look_at_white."""
    projector = model.get_projector()
    width, levels = model.config.mm_hidden_size, len(model.config.mm_vision_levels or [])
    generator = torch.Generator().manual_seed(0)
    black, change = torch.randn(2, width * (1 + levels), generator=generator)

    def project(patches, scale_factor):
        features = black + change * patches[..., None]
        features = VisionFeatures(features[..., :width], features[..., width:])
        return projector(features, scale_factor) if projector.compresses else projector(features)

    @torch.no_grad()
    def encode_images(views, scale_factor=None):
        scale_factor = scale_factor or model.config.scale_factor
        patches = torch.nn.functional.avg_pool2d(views.mean(dim=1), tiny.LLAVA_PATCH_SIZE).flatten(1)
        changed = (project(patches, scale_factor) - project(0 * patches, scale_factor)).norm(dim=-1)
        most = changed.amax(dim=1, keepdim=True)
        return tiny.colour_tokens((changed == most) & (most > 0.3 * changed.max()))

    return encode_images


@pytest.mark.parametrize(("kind", "s", "layout"), CASES, ids=lambda value: str(value))
def test_a_white_box_lights_its_own_token_and_no_pixel_far_from_it(tmp_path, kind, s, layout):
    folder = tiny.save_llava(tmp_path / "model", mm_projector_type=kind, scale_factor=s, **LAYOUTS[layout])
    tokenizer, model, processor, _ = load_pretrained_model(str(folder))
    processor.image_mean, processor.image_std = [0.0] * 3, [1.0] * 3  # padding is black
    tiny.look_at_white(model, tokenizer)
    model.encode_images = white_tokens_of(model)

    def look(pixels):
        picture = Image.fromarray(pixels)
        return image_attention(model, tokenizer, processor, picture, "where?", layers=[1], max_new_tokens=2)

    black = np.zeros((120, 200, 3), np.uint8)
    mapping = look(black).mapping
    boxes = np.rint(mapping.boxes()).astype(int)
    assert mapping.grid == GRID // s
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    seen = np.flatnonzero(sizes >= 0.6 * sizes.max() if layout in ("square", "pad") else sizes >= 60)
    for token in np.random.default_rng(0).choice(seen, size=min(3, len(seen)), replace=False):
        left, top, right, bottom = boxes[token]
        pixels = black.copy()
        pixels[top:bottom, left:right] = 255
        weights = look(pixels).mean_weights(1)
        lit = np.flatnonzero(weights > 0.01)
        assert token in lit
        assert weights[lit].sum() > 0.99
        for other in lit:  # one in each view that sees the box
            x0, y0, x1, y1 = boxes[other]
            assert min(x1, right) > max(x0, left)
            assert min(y1, bottom) > max(y0, top)
        heat = np.nan_to_num(paint_tokens(weights, mapping))
        centre = heat[(top + bottom) // 2, (left + right) // 2]
        assert centre == pytest.approx(heat.max())
