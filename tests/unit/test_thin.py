"""Thin pictures give the pixels of the plain form, at the cost of common pictures."""

import tracemalloc
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor

from llava import thin
from llava.mm_utils import expand2square, process_images

THIN = [(8000, 1), (4, 20000), (30000, 50), (2, 65000)]


def square(side: int) -> dict:
    return {"height": side, "width": side}


def processors(side: int) -> dict:
    edge = {"shortest_edge": side}
    return {
        "clip": CLIPImageProcessor(size=edge, crop_size=square(side)),
        "siglip": SiglipImageProcessor(size=square(side)),
        "siglip2": SiglipImageProcessor(size=square(side), resample=Image.Resampling.BILINEAR),
        "dinov2": BitImageProcessor(size={"shortest_edge": side + 9}, crop_size=square(side)),
        "a crop with a border": CLIPImageProcessor(size=edge, crop_size=square(side + 4)),
    }


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def plain(image: Image.Image, processor, aspect_ratio: str) -> torch.Tensor:
    """The plain form, as in LLaVA."""
    if aspect_ratio == "pad":
        image = expand2square(image, tuple(int(255 * mean) for mean in processor.image_mean))
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.slow
@pytest.mark.parametrize("aspect_ratio", ["square", "pad"])
@pytest.mark.parametrize("name", processors(9))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    side=st.integers(5, 60),
    shorter=st.integers(1, 40),
    longer=st.integers(1, 1200),
    is_tall=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_pixels_are_those_of_the_plain_form(name, aspect_ratio, side, shorter, longer, is_tall, seed):
    image = noise(*((shorter, longer) if is_tall else (longer, shorter)), seed)
    processor = processors(side)[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            thin, "COMMON_PIXELS", 0
        )  # otherwise these pictures would be too small for the special path
        (pixels,) = process_images([image], processor, Namespace(image_aspect_ratio=aspect_ratio))
    difference = (pixels - plain(image, processor, aspect_ratio)).abs()
    assert difference.max() <= 1.001 / 255 / min(processor.image_std)
    assert (difference > 1e-6).float().mean() < 0.01, "only what lies between two values may fall otherwise"


def test_common_pictures_take_the_plain_form_itself():
    for size in ((4000, 3000), (336, 336), (3000, 1000), (1, 9), (640, 160), (160, 640)):
        for processor in processors(336).values():
            for background in (None, (1, 2, 3)):
                assert thin.resized_part(Image.new("RGB", size), processor, background) is None


@pytest.fixture
def no_large_picture(monkeypatch):
    """Makes Pillow fail before it makes a picture with more pixels than a common photograph."""

    def watch(owner, name: str, size_at: int) -> None:
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            width, height = args[size_at]
            assert width * height <= 4000 * 3000, f"{name} makes {width} x {height} pixels"
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(Image, "new", 1)
    watch(Image.Image, "resize", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_large_picture")
@pytest.mark.parametrize("aspect_ratio", ["square", "pad", "slice", "anyres"])
@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_a_thin_picture_costs_no_more_than_a_common_one(name, size, aspect_ratio):
    image, processor = noise(*size), processors(336)[name]
    tracemalloc.start()  # measures arrays
    process_images([image], processor, Namespace(image_aspect_ratio=aspect_ratio))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
