"""Tiles: recorded grids and values, transformers' own LLaVA-1.6, and rules for images of any size."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor
from transformers.image_processing_utils import select_best_resolution as reference_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import unpad_image

from llava import mm_utils
from llava.mm_utils import process_anyres_image, process_images
from llava.tiling import (
    COLUMN_END,
    ROW_END,
    AnyRes,
    Slice,
    get_anyres_image_grid_shape,
    num_positions,
    parse_pinpoints,
    select_best_resolution,
    tiling_of,
    unpadded,
)
from llava.visualization.token_map import ImageMapping, TokenMap

SIDE, GRID = 28, 2
SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400))
TILINGS = st.one_of(
    st.sampled_from([9, 16, 25]).map(lambda patch_num: Slice(SIDE, patch_num)),
    st.sampled_from(["flat", "spatial", "spatial_unpad"]).map(
        lambda merge_type: AnyRes(SIDE, parse_pinpoints("(1x1),...,(3x3)", SIDE), merge_type)
    ),
)


def clip_processor(side):
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def noise(width, height):
    values = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def config(aspect_ratio, **more):
    return Namespace(image_aspect_ratio=aspect_ratio, **more)


def test_slices_grid_is_the_recorded_one_for_every_row(golden):
    recorded = json.loads((golden / "slice_grid.json").read_text())
    assert len(recorded["rows"]) == 600
    for patch_num, height, width, rows, cols in recorded["rows"]:
        assert Slice(336, patch_num).grid((width, height)) == (rows, cols), (patch_num, height, width)


def test_slices_tiles_have_the_recorded_values(golden):
    for case in json.loads((golden / "slice_tiles.json").read_text())["cases"]:
        y, x = np.mgrid[: case["height"], : case["width"]]
        picture = np.stack([3 * x + 5 * y, x * y, x ^ y], axis=-1) % 256
        settings = config("slice", patch_num=case["patch_num"])
        (tiles,) = process_images([Image.fromarray(picture.astype(np.uint8))], clip_processor(336), settings)
        assert tiles.shape == (case["num_tiles"], 3, 336, 336)
        rows, columns = torch.tensor(case["points"]).T
        torch.testing.assert_close(
            tiles[:, :, rows, columns], torch.tensor(case["values"]), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(tiles.mean((2, 3)), torch.tensor(case["tile_mean"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(80, 40), (57, 90), (28, 28), (200, 31), (301, 299), (1, 90)])
def test_anyres_tiles_are_those_of_transformers_llava_next(size):
    pinpoints = parse_pinpoints("(1x1),...,(3x3)", SIDE)
    reference = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[height, width] for width, height in pinpoints],
    )
    expected = reference(images=noise(*size), return_tensors="pt")["pixel_values"][0]
    tiles = process_anyres_image(noise(*size), clip_processor(SIDE), pinpoints)
    torch.testing.assert_close(tiles, expected.to(tiles.dtype))


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_the_best_resolution_is_that_of_transformers(size):
    pinpoints = parse_pinpoints("(1x1),...,(4x4)", 336)
    reversed_pinpoints = [resolution[::-1] for resolution in pinpoints]
    expected = reference_best_resolution(size[::-1], reversed_pinpoints)
    assert select_best_resolution(size, pinpoints) == expected[::-1]


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 6))
def test_unpadding_cuts_what_transformers_cuts(size, rows, cols):
    grid = torch.arange(16 * rows * cols).view(4 * rows, 4 * cols)
    assert torch.equal(unpadded(grid, size), unpad_image(grid[None], size[::-1])[0])


@pytest.mark.parametrize(
    "processor", [clip_processor(SIDE), SiglipImageProcessor(size={"height": SIDE, "width": SIDE})]
)
@pytest.mark.parametrize("aspect_ratio", ["slice", "anyres"])
@pytest.mark.parametrize("size", [(1, 90), (2000, 1), (1, 1), (3, 3), (64, 48)])
def test_any_picture_becomes_tiles_of_the_towers_size(processor, aspect_ratio, size):
    settings = config(aspect_ratio)
    (tiles,) = process_images([noise(*size)], processor, settings)
    assert tiles.shape == (tiling_of(settings, SIDE).num_tiles(size), 3, SIDE, SIDE)


def token_map(tiling, size):
    mappings = tuple(
        ImageMapping(*size, SIDE, canvas.scale, canvas.offset, canvas.rows, canvas.cols)
        for canvas in tiling.canvases(size)
    )
    layout = tiling.layout(size, GRID**2, tiling.num_tiles(size))
    return TokenMap(mappings, GRID, layout[layout >= 0].numpy())


@settings(max_examples=150, deadline=None)
@given(TILINGS, SIZES)
def test_boxes_of_each_canvas_partition_the_image_and_every_token_has_one(tiling, size):
    shown = token_map(tiling, size)
    assert shown.boxes().shape == (len(shown.order), 4)
    for mapping in shown.mappings:
        left, top, right, bottom = mapping.token_boxes(GRID).T
        assert ((right - left) * (bottom - top)).sum() == pytest.approx(size[0] * size[1])
        assert mapping.covered(GRID).all()


@settings(max_examples=150, deadline=None)
@given(TILINGS, SIZES)
def test_a_layout_holds_each_token_once_if_none_is_dropped_as_padding(tiling, size):
    num_tiles = tiling.num_tiles(size)
    layout = tiling.layout(size, GRID**2, num_tiles)
    assert len(layout) == num_positions(tiling, size, GRID**2)
    kept = layout[layout >= 0].sort().values
    assert len(kept.unique()) == len(kept)
    everything = torch.arange(num_tiles * GRID**2)
    if not tiling.learns_row_end:
        assert torch.equal(kept, everything)


def test_a_slice_reads_row_by_row_with_the_thumbnail_last():
    layout = Slice(336, 9).layout((640, 480), 1, 7)  # two rows of three
    assert layout.tolist() == [
        *(0, COLUMN_END, 1, COLUMN_END, 2, ROW_END),
        *(3, COLUMN_END, 4, COLUMN_END, 5, ROW_END, 6, ROW_END),
    ]
    assert Slice(336, 9).layout((336, 336), 2, 1).tolist() == [0, 1, ROW_END]


def test_anyres_joins_its_tiles_to_one_grid_behind_the_whole_image():
    size = (56, 28)  # one row of two tiles
    flat, spatial, unpad = (
        AnyRes(SIDE, ((56, 28),), name).layout(size, 4, 3).tolist()
        for name in ("flat", "spatial", "spatial_unpad")
    )
    assert flat == list(range(12))
    assert spatial == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]
    assert unpad == [0, 1, 2, 3, 4, 5, 8, 9, ROW_END, 6, 7, 10, 11, ROW_END]
    assert AnyRes(SIDE, ((56, 28),), "spatial_unpad").layout(None, 4, 1).tolist() == [0, 1, 2, 3, ROW_END]


@pytest.mark.parametrize(
    "pinpoints", [[[56, 28], [28, 56]], ((56, 28), (28, 56)), "[[56,28],[28,56]]", "[(56, 28), (28, 56)]"]
)
def test_pinpoints_come_as_lists_or_text(pinpoints):
    assert parse_pinpoints(pinpoints, 28) == ((56, 28), (28, 56))


def test_pinpoints_may_be_a_range_of_grids_or_missing():
    assert parse_pinpoints("(1x1),...,(2x3)", 10) == (
        (10, 10),
        (10, 20),
        (10, 30),
        (20, 10),
        (20, 20),
        (20, 30),
    )
    assert parse_pinpoints(None, 336)[0] == (336, 672)
    assert get_anyres_image_grid_shape((800, 300), "[[336,672],[672,336]]", 336) == (2, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config("slice", patch_num=10), "--patch_num.*9, 16, 25.*10"),
        (config("anyres", mm_patch_merge_type="wide"), "--mm_patch_merge_type.*flat"),
        (config("anyres", image_grid_pinpoints="[[30, 28]]"), "--image_grid_pinpoints.*28 pixels.*30, 28"),
        (config("anyres", image_grid_pinpoints="28x56"), "--image_grid_pinpoints.*width, height"),
        (config("anyres", image_grid_pinpoints=[]), r"--image_grid_pinpoints.*28 pixels.*\[\]"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        process_images([noise(9, 9)], clip_processor(SIDE), settings)


def test_a_processor_that_makes_no_square_is_refused():
    with pytest.raises(ValueError, match="crop_size"):
        process_images(
            [noise(9, 9)],
            CLIPImageProcessor(size={"shortest_edge": 28}, do_center_crop=False),
            config("slice"),
        )


def test_tiles_that_are_not_the_images_and_unknown_sizes_are_refused():
    with pytest.raises(ValueError, match="image_sizes is missing"):
        Slice(28).layout(None, 4, 3)
    with pytest.raises(ValueError, match=r"640x480.*3 tile.*Slice.*7"):
        Slice(336).layout((640, 480), 4, 3)
    with pytest.raises(ValueError, match="3 tiles.*--image_aspect_ratio"):
        tiling_of(None, 28).layout(None, 4, 3)


def test_evaluators_find_the_names_where_they_import_them():
    assert mm_utils.select_best_resolution is select_best_resolution
    assert mm_utils.get_anyres_image_grid_shape is get_anyres_image_grid_shape
