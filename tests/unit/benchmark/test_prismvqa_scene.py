"""PrismVQA's scenes: fixed by the seed, without overlap, each in one split, evenly distributed."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.benchmark.prismvqa.draw import CORNERS, HALO, RIM, TEXT_WIDTH, outline_of
from llava.benchmark.prismvqa.scene import (
    COLORS,
    FINENESS,
    MAX_ITEMS,
    PATTERNS,
    REACH,
    SHAPES,
    SIZES,
    SPACING,
    TEXTS,
    sample_scene,
    split_of,
)

scenes = st.builds(
    sample_scene, st.integers(0, 2**32), st.sampled_from(["train", "test"]), st.integers(0, 10**6)
)


@given(st.integers(0, 2**32), st.sampled_from(["train", "test"]), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_scene_follows_from_seed_split_and_number_alone(seed, split, index):
    scene = sample_scene(seed, split, index)
    sample_scene(seed, split, index + 1)
    assert sample_scene(seed, split, index) == scene
    assert sample_scene(seed, split, index + 1) != scene
    assert sample_scene(seed + 1, split, index) != scene


@given(scenes)
@settings(max_examples=100, deadline=None)
def test_items_are_inside_the_picture_and_do_not_overlap(scene):
    assert 1 <= len(scene.items) <= MAX_ITEMS
    for item in scene.items:
        assert np.linalg.norm(outline_of(item), axis=1).max() + RIM <= REACH
        assert TEXT_WIDTH / 2 * item.radius + 2 * HALO <= REACH
        assert REACH <= item.x <= 1 - REACH
        assert REACH <= item.y <= 1 - REACH
    for item, other in combinations(scene.items, 2):
        assert np.hypot(item.x - other.x, item.y - other.y) >= SPACING


def test_the_largest_item_of_each_shape_stays_within_reach():
    assert max(CORNERS.values()) * max(SIZES.values()) * 1.04 + RIM <= REACH


@given(scenes)
@settings(max_examples=100, deadline=None)
def test_an_items_description_agrees_with_itself(scene):
    for item in scene.items:
        nearest = min(SIZES, key=lambda size: abs(SIZES[size] - item.radius))
        assert item.size == nearest
        assert np.abs(np.subtract(item.rgb, COLORS[item.color])).max() <= 16
        assert bool(item.text) == bool(item.font)
        assert not (item.text and item.pattern != "plain")
        assert bool(item.direction) == (item.pattern == "stripes")
        assert bool(item.fineness) == (item.pattern != "plain")
        if item.fineness:
            low, high = FINENESS[item.fineness]
            assert low <= 336 * item.period <= high + 1e-3


@pytest.mark.slow
@given(scenes, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_split_depends_on_shapes_colors_and_places_alone(scene, random):
    shuffled = list(scene.items)
    random.shuffle(shuffled)
    changed = [replace(item, size="", radius=0, text="x", pattern="", angle=5, rgb=()) for item in shuffled]
    assert split_of(replace(scene, items=tuple(changed), counted=("", ""))) == split_of(scene)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_no_layout_of_one_split_is_drawn_in_the_other(split):
    """This follows from the construction: a layout names its split, whatever the seed is."""
    assert {split_of(sample_scene(seed, split, i)) for seed in (0, 1) for i in range(60)} == {split}


def test_both_splits_get_their_share_of_layouts():
    places = [(x / 40, y / 40) for x in range(6, 34) for y in range(6, 34)]
    scene = sample_scene(0, "train", 0)
    alone = [replace(scene, items=(replace(scene.items[0], x=x, y=y),)) for x, y in places]
    shares = Counter(map(split_of, alone))
    assert 0.05 < shares["test"] / len(places) < 0.25


@pytest.mark.slow
def test_attributes_are_drawn_evenly():
    items = [item for i in range(1500) for item in sample_scene(3, "train", i).items]
    for attribute, values in (("color", COLORS), ("shape", SHAPES), ("size", SIZES)):
        counts = Counter(getattr(item, attribute) for item in items)
        assert counts.keys() == set(values)
        # items of a scene for counting are alike, so the variance is larger than in a binomial distribution
        assert max(counts.values()) < 1.2 * len(items) / len(values)
    patterns = Counter(item.pattern for item in items if not item.text)
    assert patterns.keys() == set(PATTERNS)
    assert max(patterns.values()) < 1.15 * sum(patterns.values()) / len(PATTERNS)


@pytest.mark.slow
def test_places_say_nothing_about_sizes():
    items = [item for i in range(1500) for item in sample_scene(3, "train", i).items]
    for size in SIZES:
        places = np.array([(item.x, item.y) for item in items if item.size == size])
        assert np.abs(places.mean(axis=0) - 0.5).max() < 0.02
        assert np.abs(places.std(axis=0) - 0.22).max() < 0.02


def test_texts_are_256_of_two_to_four_characters():
    assert len(set(TEXTS)) == len(TEXTS) == 256
    assert Counter(map(len, TEXTS)) == {2: 64, 3: 128, 4: 64}
    assert all(text.isdigit() or (text.isalpha() and text.isupper()) for text in TEXTS)
