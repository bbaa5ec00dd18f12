"""Token maps, compared with real image processors: a token's pixels are painted and found again."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava.mm_utils import process_images
from llava.visualization.token_map import image_mapping

SIDE, GRID = 48, 4
CELL = SIDE // GRID
PLAIN = {"do_normalize": False, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **PLAIN
    ),
    # like DINOv2's: the image is resized to more than the crop
    "crop_within": CLIPImageProcessorPil(
        size={"shortest_edge": 60}, crop_size={"height": SIDE, "width": SIDE}, **PLAIN
    ),
    "siglip": SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, **PLAIN),
}
SIZES = [(96, 96), (200, 100), (100, 230), (151, 97), (97, 150), (30, 41)]


def landed(mask, processor, aspect_ratio):
    """Prepare a painted mask as for the tower, and sum the paint in each cell: float[GRID, GRID]."""
    picture = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2).astype(np.uint8))
    pixels = process_images([picture], processor, SimpleNamespace(image_aspect_ratio=aspect_ratio))[
        0, 0
    ].numpy()
    return pixels.reshape(GRID, CELL, GRID, CELL).sum(axis=(1, 3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_tokens_pixels_land_in_that_tokens_cell(name, aspect_ratio, size):
    processor = PROCESSORS[name]
    tokens = image_mapping(*size, processor, aspect_ratio).token_of_pixels(GRID)
    assert tokens.shape == size[::-1]
    for token in np.unique(tokens[tokens >= 0]):
        cells = np.clip(landed(tokens == token, processor, aspect_ratio), 0, None).flatten()
        assert cells.argmax() == token
        # interpolation blurs the edges, more in a smaller picture, and very narrow cells consist of edges
        if (tokens == token).sum() > 60:
            assert cells[token] > 0.75 * cells.sum()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_of_no_token_never_reach_the_tower(name, aspect_ratio, size):
    processor = PROCESSORS[name]
    covered = image_mapping(*size, processor, aspect_ratio).covered(GRID)
    assert landed(~covered, processor, aspect_ratio).sum() < 0.07 * SIDE * SIDE  # the blurred border
    assert (
        landed(covered, processor, aspect_ratio).sum()
        > 0.9 * landed(covered | True, processor, aspect_ratio).sum()
    )


def test_boxes_of_a_cropped_image_by_hand():
    # 200x100 becomes 96x48, of which the middle 48 columns stay: image columns 50 to 150, tokens of 25 pixels
    boxes = image_mapping(200, 100, PROCESSORS["clip"], "square").token_boxes(GRID)
    assert boxes[0] == pytest.approx([50, 0, 75, 25])
    assert boxes[-1] == pytest.approx([125, 75, 150, 100])


def test_boxes_of_a_padded_image_by_hand():
    # padded to 200x200 by 50 rows above and below: the first token row is all padding
    boxes = image_mapping(200, 100, PROCESSORS["clip"], "pad").token_boxes(GRID)
    assert boxes[1] == pytest.approx([50, 0, 100, 0])
    assert boxes[4] == pytest.approx([0, 0, 50, 50])
    assert boxes[11] == pytest.approx([150, 50, 200, 100])


@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
def test_boxes_and_pixel_map_agree(aspect_ratio):
    mapping = image_mapping(151, 97, PROCESSORS["clip"], aspect_ratio)
    tokens = mapping.token_of_pixels(GRID)
    for token, (left, top, right, bottom) in enumerate(mapping.token_boxes(GRID)):
        rows, columns = np.nonzero(tokens == token)
        x, y = np.arange(151) + 0.5, np.arange(97) + 0.5
        inside = np.ix_((y >= top) & (y < bottom), (x >= left) & (x < right))
        assert (tokens[inside] == token).all()
        assert len(rows) == tokens[inside].size
        assert len(columns) == tokens[inside].size


def test_a_resized_mapping_shows_the_same_tokens():
    mapping = image_mapping(400, 200, PROCESSORS["clip"], "square")
    assert np.array_equal(
        mapping.resized(200, 100).token_of_pixels(GRID), mapping.token_of_pixels(GRID)[::2, ::2]
    )


def test_other_aspect_ratios_are_refused():
    with pytest.raises(ValueError, match="image_aspect_ratio.*square.*pad.*'anyres'"):
        image_mapping(10, 10, PROCESSORS["clip"], "anyres")


def test_a_processor_whose_output_is_no_square_is_refused():
    processor = SimpleNamespace(do_resize=True, size={"shortest_edge": SIDE}, do_center_crop=False)
    with pytest.raises(ValueError, match="makes 96x48 pixels"):
        image_mapping(200, 100, processor, "square")
