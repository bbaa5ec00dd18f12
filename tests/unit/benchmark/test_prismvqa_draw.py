"""PrismVQA's pictures: the pixels agree with the scene."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from llava.benchmark.prismvqa.draw import draw_ground, draw_scene, font_file, outline_of
from llava.benchmark.prismvqa.preview import write_preview
from llava.benchmark.prismvqa.scene import (
    COLORS,
    DIRECTIONS,
    FINENESS,
    FONTS,
    PATTERNS,
    PHOTOS,
    REACH,
    SHAPES,
    TEXTS,
    Ground,
    Item,
    Scene,
    sample_scene,
)

PLAIN = Ground("", ((200, 200, 200), (200, 200, 200)), 0.0, (0.0, 0.0, 1.0), False)
LARGE = Item("red", "square", "large", 0.5, 0.5, 0.103, 0.0, COLORS["red"])


def pixels(*items: Item, size: int = 336, ground: Ground = PLAIN) -> np.ndarray:
    """The picture as uint8[size, size, 3]."""
    return np.asarray(draw_scene(Scene(ground, items, ("", "")), size))


@given(st.integers(0, 10**6), st.sampled_from([112, 224, 336, 337]))
@settings(max_examples=20, deadline=None)
def test_a_scene_is_drawn_the_same_each_time_at_any_size(index, size):
    scene = sample_scene(0, "train", index)
    picture = np.asarray(draw_scene(scene, size))
    assert picture.shape == (size, size, 3)
    np.testing.assert_array_equal(picture, np.asarray(draw_scene(scene, size)))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_only_pixels_within_an_items_reach_change(index):
    scene = sample_scene(0, "train", index)
    size = 336
    changed = np.any(np.asarray(draw_scene(scene, size)) != np.asarray(draw_ground(scene.ground, size)), -1)
    rows, columns = (np.mgrid[0:size, 0:size] + 0.5) / size
    near = np.zeros_like(changed)
    for item in scene.items:
        within = np.hypot(columns - item.x, rows - item.y)
        near |= within <= REACH + 1.5 / size
        assert changed[within <= 0.4 * item.radius].mean() > 0.9
    assert not changed[~near].any()


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_mean_color_of_an_item_is_nearest_to_its_name(color, pattern):
    item = replace(
        LARGE,
        color=color,
        rgb=COLORS[color],
        pattern=pattern,
        direction="rising" * (pattern == "stripes"),
        period=3 / 336 if pattern != "plain" else 0,
    )
    middle = pixels(item)[150:186, 150:186].reshape(-1, 3).mean(axis=0)
    assert min(COLORS, key=lambda name: np.linalg.norm(middle - COLORS[name])) == color


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_what_its_outline_encloses(shape):
    item = replace(LARGE, shape=shape, angle=7.0)
    x, y = (outline_of(item) * 336).T
    area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    red = np.abs(pixels(item).astype(int) - COLORS["red"]).max(axis=-1) < 60
    # half of the rim is inside
    assert 0.84 < red.sum() / area < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_smooth(shape):
    """A line across a slanted edge contains shades between the ground and the rim."""
    picture = pixels(replace(LARGE, shape=shape, angle=7.0))
    between = (picture.max(axis=-1) < 190) & (picture.min(axis=-1) > 40)
    assert between.sum() > 60


def peak(item: Item, size: int) -> tuple[float, float]:
    """The strongest frequency inside an item, (down, across), in cycles per pixel."""
    half = int(0.06 * size)
    middle = slice(size // 2 - half, size // 2 + half)
    grey = pixels(item, size=size)[middle, middle].mean(axis=-1)
    window = np.hanning(2 * half)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window, (512, 512)))
    down, across = np.unravel_index(power.argmax(), power.shape)
    return np.fft.fftfreq(512)[down], np.fft.fftfreq(512)[across]


@pytest.mark.parametrize("period", [2.8, 3.1, 4.0, 4.5, 5.6, 6.4])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_stripes_have_their_direction_and_period(direction, period):
    item = replace(LARGE, pattern="stripes", direction=direction, period=period / 336, phase=(0.3, 0.7))
    down, across = peak(item, 336)
    assert np.hypot(down, across) == pytest.approx(1 / period, rel=0.04)
    expected = {"horizontal": (1, 0), "vertical": (0, 1), "rising": (1, 1), "falling": (1, -1)}[direction]
    cosine = abs(np.dot((down, across), expected)) / np.hypot(down, across) / np.hypot(*expected)
    assert cosine > 0.99


@pytest.mark.parametrize("pattern", ["dots", "checks"])
def test_dots_repeat_along_the_axes_and_checks_along_the_diagonals(pattern):
    down, across = peak(replace(LARGE, pattern=pattern, period=4 / 336), 336)
    assert np.hypot(down, across) == pytest.approx(1 / 4, rel=0.04)
    slant = min(abs(down), abs(across)) / max(abs(down), abs(across))
    assert slant < 0.1 if pattern == "dots" else slant > 0.9


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("fineness", FINENESS)
@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_patterns_keep_contrast_at_both_sizes(pattern, fineness, size):
    item = replace(
        LARGE,
        pattern=pattern,
        direction="vertical" * (pattern == "stripes"),
        period=FINENESS[fineness][0] / 336,
        phase=(0.3, 0.7),
    )
    half = int(0.05 * size)
    middle = slice(size // 2 - half, size // 2 + half)
    assert pixels(item, size=size)[middle, middle].mean(axis=-1).std() > 10


@pytest.mark.parametrize("font", FONTS)
def test_a_font_has_every_letter(font):
    drawn = ImageFont.truetype(font_file(font), 40)
    masks = {letter: bytes(drawn.getmask(letter)) for letter in set("".join(TEXTS))}
    assert len(set(masks.values())) == len(masks)
    assert all(any(mask) for mask in masks.values())
    assert bytes(drawn.getmask("\uffff")) not in masks.values()


@pytest.mark.slow
@pytest.mark.parametrize("font", FONTS)
def test_each_text_looks_different_even_on_a_small_item(font):
    item = replace(LARGE, size="small", radius=0.047, font=font)
    pictures = {text: pixels(replace(item, text=text), size=224) for text in TEXTS[60:68] + TEXTS[250:]}
    shown = [picture.astype(int) for picture in pictures.values()]
    for i, first in enumerate(shown):
        for second in shown[:i]:
            assert (np.abs(first - second).max(axis=-1) > 60).sum() >= 8


@pytest.mark.parametrize("photo", PHOTOS)
def test_photographs_come_with_scikit_image_and_are_cut_square(photo):
    picture = draw_ground(Ground(photo, PLAIN.rgb, 0.0, (1.0, 1.0, 0.5), True), 96)
    assert picture.mode == "RGB"
    assert picture.size == (96, 96)
    assert np.asarray(picture).std() > 5


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="matplotlib.*pip install"):
        font_file("DejaVuSans")


def test_a_ground_fades_from_one_color_to_the_other():
    ground = Ground("", ((0, 50, 100), (200, 150, 100)), 0.0, (0.0, 0.0, 1.0), False)
    picture = np.asarray(draw_ground(ground, 100))
    assert picture[:, 0, 0].max() < picture[:, 50, 0].min() < picture[:, 99, 0].min()
    assert (picture[..., 2] == 100).all()


def test_preview_is_a_sheet_of_a_dozen(tmp_path):
    from PIL import Image

    write_preview(tmp_path / "new" / "sheet.png", size=112)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 4 * 112
        assert sheet.height > 3 * 112
