"""A model that attends to white lights the white pixels, for each projector, s and layout of tiles.

The tower gives each patch its mean colour, and the projector is real. A white token is one that changes most
between a black picture and one with a white box.
"""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.builder import PROJECTORS
from llava.visualization.answer import image_attention
from llava.visualization.plots import paint_tokens
from llava.visualization.token_map import token_map

SIDE, GRID, WIDTH = (
    96,
    12,
    32,
)  # side of the tower's input, grid of its patches, width of the tower and the language model
LAYOUTS = {
    "square": ("square", "flat"),
    "pad": ("pad", "flat"),
    "slice": ("slice", "flat"),
    "anyres": ("anyres", "flat"),
    "anyres-unpad": ("anyres", "spatial_unpad"),
}
WITHOUT_GRID = {"visionzip", "prumerge"}
SINGLE = ["identity", "linear", "mlp2x_gelu"]
COMPRESSING = [
    "visualprism_v2",
    "tokenpacker",
    "avgpool",
    "pixel_shuffle",
    "ldpv2",
    "cabstractor",
    "resampler",
]
CASES = [
    *((kind, 1, layout) for kind in SINGLE for layout in ("square", "slice", "anyres")),
    *((kind, s, layout) for kind in COMPRESSING for s in (2, 3, 4) for layout in ("pad", "slice", "anyres")),
    *(("visualprism", s, layout) for s in (2, 3, 4) for layout in LAYOUTS),
    ("visualprism", 1, "pad"),
]


def test_every_projector_with_a_grid_is_checked():
    assert {kind for kind, _, _ in CASES} == {*PROJECTORS, "mlp2x_gelu"} - WITHOUT_GRID


@torch.no_grad()
def keep_local(projector) -> None:
    """Set weights with which each token depends only on its place, for projectors whose tokens may depend on
    the whole image. With random weights, a token's place in the grid would not be what it shows."""
    kind = type(projector).__name__
    if kind == "CAbstractor":
        for block in (*projector.before, *projector.after):
            block.residual[-1].weight.zero_()
            block.residual[-1].bias.zero_()
    if kind == "Resampler":
        # The sines and cosines of the two shortest waves encode the place, all other channels the content
        quarter = WIDTH // 4
        of_place = [half + wave for half in range(0, WIDTH, quarter) for wave in range(2)]
        for part in (projector.q_proj, projector.k_proj):
            part.weight.zero_()
            part.weight[of_place, of_place] = 30
            part.bias.zero_()
        projector.ln_q.weight.zero_()
        projector.ln_kv.weight[of_place] = 0


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Maps (kind, s) to (tokenizer, model, image processor). Each is made once, then gets other layouts."""
    tower = tiny.clip(hidden_size=WIDTH, intermediate_size=64, image_size=SIDE, patch_size=SIDE // GRID)
    made = {}

    def give(kind, s):
        if (kind, s) not in made:
            folder = tiny.save_llava(
                tmp_path_factory.mktemp("truth") / "model",
                mm_projector_type=kind,
                scale_factor=s,
                mm_vision_config=tower.config.to_dict(),
                image_aspect_ratio="anyres",
                mm_patch_merge_type="spatial_unpad",
            )
            tokenizer, model, _, _ = load_pretrained_model(str(folder))
            processor = tiny.image_processor(SIDE)
            processor.image_mean, processor.image_std = [0.0] * 3, [1.0] * 3  # padding is black
            tiny.look_at_white(model, tokenizer)
            keep_local(model.get_projector())
            model.encode_images = white_tokens_of(model)
            made[kind, s] = tokenizer, model, processor
        return made[kind, s]

    return give


def white_tokens_of(model):
    """A model.encode_images whose tower gives only colours; bool[V, M] become features for look_at_white."""
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
        patches = torch.nn.functional.avg_pool2d(views.mean(dim=1), SIDE // GRID).flatten(1)
        changed = (project(patches, scale_factor) - project(0 * patches, scale_factor)).norm(dim=-1)
        most = changed.amax(dim=1, keepdim=True)
        return tiny.colour_tokens((changed == most) & (most > 0.3 * changed.max()))

    return encode_images


def boxes_and_look(asked, layout, method="attention", layer=1):
    """(int[M', 4], boxes of the tokens in a picture of 200x120; a function that computes its attention)."""
    tokenizer, model, processor = asked
    model.config.image_aspect_ratio, model.config.mm_patch_merge_type = LAYOUTS[layout]

    def look(pixels):
        picture = Image.fromarray(pixels)
        return image_attention(
            model, tokenizer, processor, picture, "where?", layers=[layer], method=method, max_new_tokens=1
        )

    mapping = token_map(model, (200, 120), processor)
    return np.rint(mapping.boxes()).astype(int), look


def some_seen(boxes, layout, number=2):
    """Tokens whose part of the picture is large enough for a box of their size to have an effect."""
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    least = 0.6 * sizes.max() if layout in ("square", "pad") else 60
    seen = np.flatnonzero(sizes >= least)
    return np.random.default_rng(0).choice(seen, size=min(number, len(seen)), replace=False)


def with_box(box):
    left, top, right, bottom = box
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    return pixels


@pytest.mark.parametrize(("kind", "s", "layout"), CASES, ids=lambda value: str(value))
def test_a_white_box_lights_its_own_token_and_no_pixel_far_from_it(model_of, kind, s, layout):
    boxes, look = boxes_and_look(model_of(kind, s), layout)
    for token in some_seen(boxes, layout):
        left, top, right, bottom = boxes[token]
        result = look(with_box(boxes[token]))
        assert result.mapping.grid == GRID // s
        weights = result.mean_weights(1)
        lit = np.flatnonzero(weights > 0.01)
        assert token in lit
        assert weights[lit].sum() > 0.99
        for other in lit:  # one in each view that contains the box
            x0, y0, x1, y1 = boxes[other]
            assert min(x1, right) > max(x0, left)
            assert min(y1, bottom) > max(y0, top)
        heat = np.nan_to_num(paint_tokens(weights, result.mapping))
        centre = heat[(top + bottom) // 2, (left + right) // 2]
        assert centre == pytest.approx(heat.max(), rel=0.01)


# After one layer, half of rollout remains at the word itself; relevance is in logits and not a share
@pytest.mark.parametrize(("method", "layer", "total"), [("rollout", 0, 0.5), ("relevance", 1, None)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_methods_light_the_same_tokens(model_of, layout, method, layer, total):
    asked = model_of("visualprism", 2)
    boxes, look = boxes_and_look(asked, layout)
    _, look_otherwise = boxes_and_look(asked, layout, method, layer)
    for token in some_seen(boxes, layout):
        pixels = with_box(boxes[token])
        lit = look(pixels).mean_weights(1) > 0.01
        weights = look_otherwise(pixels).mean_weights(layer)
        assert weights[lit].sum() > 0.99 * weights.sum() > 0
        assert total is None or weights.sum() == pytest.approx(total, abs=0.01)
