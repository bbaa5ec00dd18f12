"""Sample the scenes of PrismVQA from a seed: items and their places, in fractions of the picture's side.

Nothing here depends on pixels. Attributes are drawn uniformly and independently, except for the one that a
scene is made to be counted by, and places do not depend on them. So exchanging two colors (shapes, sizes,
...) in all scenes gives the same distribution, and the words of a question tell nothing beyond what they say.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

SPLITS = ("train", "test")
MAX_ITEMS = 6
SHAPES = ("circle", "square", "triangle", "diamond", "hexagon", "star", "cross", "heart")
COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 20),
    "yellow": (245, 215, 40),
    "green": (40, 155, 60),
    "cyan": (60, 200, 215),
    "blue": (40, 75, 215),
    "purple": (130, 50, 175),
    "gray": (140, 140, 140),
}
# Radii; each is nearly 1.5 times the one before
SIZES = {"small": 0.048, "medium": 0.0705, "large": 0.103}
PATTERNS = ("plain", "stripes", "dots", "checks", "rings")
DIRECTIONS = ("horizontal", "vertical", "rising", "falling")  # rising: from bottom left to top right
# Ranges of periods in 1/336 of the side, which is a pixel at size 336; at 224 they are 1.9 to 4.3 pixels
FINENESS = {"fine": (2.8, 3.1), "medium": (4.0, 4.5), "coarse": (5.6, 6.4)}
PERIOD_UNIT = 336
# Files that matplotlib ships: DejaVu, STIX and Computer Modern
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
    "STIXGeneralBol",
    "cmb10",
    "cmss10",
)
# Pictures that the package of scikit-image contains and that show no text
PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "rocket",
)
COUNTABLE = ("color", "shape", "size")

REACH = 0.138  # largest distance of an outline from its centre: corner of a large triangle or star, with rim
SPACING = 2 * REACH  # least distance between centres, for all sizes, so that places tell nothing about sizes
TEXT_SHARE = 0.4  # share of the items that have a text; the others have each pattern equally often
PHOTO_SHARE = 0.5
TEST_SHARE = 8  # one layout in eight belongs to the test split only
LAYOUT_CELLS = 16  # cells a side of the grid on which layouts are compared


def _texts() -> tuple[str, ...]:
    """256 strings: 64 numbers of two digits, 128 syllables of three letters, 64 words of four.

    Most strings differ from another one in a single character, so that every character has to be read. The
    steps are coprime to the lengths, which spreads the choice over all first, middle and last letters.
    """
    numbers = [str(number) for number in range(10, 100)]
    syllables = ["".join(letters) for letters in product("BDHKLMNPRSTVZ", "AEIOU", "BDLMNPRSTZ")]
    words = ["".join(letters) for letters in product("BDKLMNRSTV", "AEIO", "BDKLMNRSTV", "AEOU")]
    return (
        *(numbers[7 * i % len(numbers)] for i in range(64)),
        *(syllables[311 * i % len(syllables)] for i in range(128)),
        *(words[617 * i % len(words)] for i in range(64)),
    )


TEXTS = _texts()


@dataclass(frozen=True)
class Item:
    """One item of a scene. Lengths are fractions of the picture's side, y points down, angles are in degrees.

    `direction` is "" except for stripes. `fineness` and `period` are "" and 0 for plain items. `text` and
    `font` are "" if nothing is printed; an item with a text is plain.
    """

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]
    pattern: str = "plain"
    direction: str = ""
    fineness: str = ""
    period: float = 0.0
    phase: tuple[float, float] = (0.0, 0.0)
    text: str = ""
    font: str = ""


@dataclass(frozen=True)
class Ground:
    """The background: a square crop of a photograph (`photo`), or a gradient from one color to another.

    Args:
        rgb: colors of the two ends of the gradient; `angle` is its direction in degrees.
        crop: left and top as fractions of the space that the crop leaves free, and its side as a fraction of
            the photograph's shorter side.
    """

    photo: str
    rgb: tuple[tuple[int, int, int], tuple[int, int, int]]
    angle: float
    crop: tuple[float, float, float]
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """Background and items. `counted` is the (attribute, value) to be counted, ("", "") for all items."""

    ground: Ground
    items: tuple[Item, ...]
    counted: tuple[str, str]


def generator(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    """The random generator of one stream of a scene; it does not depend on any other stream or scene."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index, stream)))


def split_of(scene: Scene) -> str:
    """The only split that may have the scene's layout: shapes, colors, and places on a grid of 16 by 16."""
    cells = sorted(
        (int(item.x * LAYOUT_CELLS), int(item.y * LAYOUT_CELLS), item.shape, item.color)
        for item in scene.items
    )
    digest = hashlib.blake2b(repr(cells).encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """Scene number `index` of a split; it is drawn again until its layout belongs to the split.

    Args:
        seed: seed of the data set, 0 or more.
        split: "train" or "test".
        index: from 0.
    """
    rng = generator(seed, split, index, 0)
    while True:
        scene = _draw(rng)
        if split_of(scene) == split:
            return scene


def pick(rng: np.random.Generator, choices):
    """One of the choices, all equally likely."""
    return tuple(choices)[int(rng.integers(len(choices)))]


def _draw(rng: np.random.Generator) -> Scene:
    attribute = pick(rng, ("", *COUNTABLE))
    if attribute:
        number = int(rng.integers(MAX_ITEMS))  # number of counted items, 0 to 5
        num_items = int(rng.integers(max(1, number), MAX_ITEMS + 1))
    else:
        number = num_items = int(rng.integers(1, MAX_ITEMS + 1))
    items = [_item(rng, place) for place in _places(rng, num_items)]
    value = ""
    if attribute:
        values = tuple({"color": COLORS, "shape": SHAPES, "size": SIZES}[attribute])
        value = pick(rng, values)
        others = [other for other in values if other != value]
        items = [
            _with(rng, item, attribute, value if i < number else pick(rng, others))
            for i, item in enumerate(items)
        ]
    # counted items come first in the list, but neither places nor drawing order distinguish them
    return Scene(_ground(rng), tuple(items), (attribute, value))


def _places(rng: np.random.Generator, num_items: int) -> list[tuple[float, float]]:
    """Random centres, at least SPACING apart and at least REACH from the edge."""
    while True:
        places: list[tuple[float, float]] = []
        for _ in range(30 * num_items):
            x, y = (REACH + (1 - 2 * REACH) * rng.random(2)).round(4).tolist()
            if all((x - a) ** 2 + (y - b) ** 2 >= SPACING**2 for a, b in places):
                places.append((x, y))
            if len(places) == num_items:
                return places


def _item(rng: np.random.Generator, place: tuple[float, float]) -> Item:
    item = Item("", pick(rng, SHAPES), "", *place, 0.0, round(float(rng.uniform(-12, 12)), 1), (0, 0, 0))
    item = _with(rng, _with(rng, item, "color", pick(rng, COLORS)), "size", pick(rng, SIZES))
    if rng.random() < TEXT_SHARE:
        return replace(item, text=pick(rng, TEXTS), font=pick(rng, FONTS))
    pattern = pick(rng, PATTERNS)
    if pattern == "plain":
        return item
    fineness = pick(rng, FINENESS)
    return replace(
        item,
        pattern=pattern,
        direction=pick(rng, DIRECTIONS) if pattern == "stripes" else "",
        fineness=fineness,
        period=round(float(rng.uniform(*FINENESS[fineness])) / PERIOD_UNIT, 6),
        phase=tuple(rng.random(2).round(3).tolist()),
    )


def _with(rng: np.random.Generator, item: Item, attribute: str, value: str) -> Item:
    """The item with another color, shape or size; the shade of a color or radius of a size is drawn anew."""
    if attribute == "shape":
        return replace(item, shape=value)
    if attribute == "size":
        return replace(item, size=value, radius=round(SIZES[value] * float(rng.uniform(0.96, 1.04)), 4))
    # brightness varies more than hue, since a tinted gray would have another name
    shade = np.clip(np.array(COLORS[value]) + rng.integers(-12, 13) + rng.integers(-4, 5, 3), 0, 255)
    return replace(item, color=value, rgb=tuple(shade.tolist()))


def _ground(rng: np.random.Generator) -> Ground:
    photo = pick(rng, PHOTOS) if rng.random() < PHOTO_SHARE else ""
    light = rng.uniform(60, 240)
    ends = np.clip(light + rng.uniform(-25, 25, (2, 1)) + rng.uniform(-18, 18, (2, 3)), 0, 255).astype(int)
    return Ground(
        photo,
        tuple(map(tuple, ends.tolist())),  # type: ignore[arg-type]
        round(float(rng.uniform(0, 360)), 1),
        tuple(np.append(rng.random(2), rng.uniform(0.5, 1)).round(4).tolist()),
        bool(rng.random() < 0.5),
    )
