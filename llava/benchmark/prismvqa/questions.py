"""Questions about a scene, in eight families; each answer follows from the scene only.

Three rules keep the text from telling the answer. An item is named by other attributes than the one asked
for. Whether a question can be asked does not depend on the value of its answer. The choice among the
possible questions is uniform.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from operator import attrgetter

import numpy as np

from llava.benchmark.prismvqa.scene import (
    COLORS,
    DIRECTIONS,
    FINENESS,
    MAX_ITEMS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTS,
    Item,
    Scene,
    pick,
)

SIDES = ("left", "right", "above", "below")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
EXTREMES = {"leftmost": ("x", 1), "rightmost": ("x", -1), "topmost": ("y", 1), "bottommost": ("y", -1)}
CLEAR = 0.05  # smallest difference in position that is asked about, as a share of the picture's side
CLEARLY_NEARER = 1.25  # the second nearest item is at least this many times as far away as the nearest
PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question about one picture; `form` names the kind of question within the family."""

    family: str
    text: str
    answer: str
    form: str = ""


@dataclass(frozen=True)
class Form:
    """A kind of question.

    Args:
        answers: all possible answers, equally frequent; empty if the question itself names two answers.
        ask: maps (scene, random generator) to (text, answer), or None if the scene allows no such question.
    """

    family: str
    answers: tuple[str, ...]
    ask: Callable[[Scene, np.random.Generator], tuple[str, str] | None]

    @property
    def chance(self) -> float:
        """The best accuracy that can be reached without looking at the picture."""
        return 1 / (len(self.answers) or 2)


def name_of(item: Item, attributes: Sequence[str]) -> str:
    """The attributes' values in English order, such as "small red object" or "circle"."""
    words = [getattr(item, attribute) for attribute in ("size", "color", "shape") if attribute in attributes]
    return " ".join(words if "shape" in attributes else [*words, "object"])


def _names(scene: Scene, item: Item, attributes: Sequence[str]) -> list[str]:
    """The shortest names by these attributes that fit no other item; [] if there are none."""
    subsets = [
        [attribute for attribute, kept in zip(attributes, mask, strict=True) if kept]
        for mask in product((False, True), repeat=len(attributes))
    ]
    for length in range(1, len(attributes) + 1):
        found = [
            name_of(item, subset)
            for subset in subsets
            if len(subset) == length and _matches(scene, item, subset) == 1
        ]
        if found:
            return found
    return []


def _matches(scene: Scene, item: Item, attributes: Sequence[str]) -> int:
    return sum(all(getattr(other, a) == getattr(item, a) for a in attributes) for other in scene.items)


NAMING = ("size", "color", "shape")


def _named(
    scene: Scene, rng: np.random.Generator, candidates: Sequence[Item], attributes: Sequence[str]
) -> tuple[Item, str] | None:
    """A random one of the candidates that have a name, and one of its names; None if none has a name."""
    named = [(item, names) for item in candidates if (names := _names(scene, item, attributes))]
    if not named:
        return None
    item, names = pick(rng, named)
    return item, pick(rng, names)


def _others(attribute: str) -> list[str]:
    return [other for other in NAMING if other != attribute]


def _of_named(text: str, ask_for: str | Callable[[Item], str], attributes: Sequence[str] = NAMING):
    """Make a form's `ask`, which names an item and asks for its value; the name replaces {} in the text."""
    value = attrgetter(ask_for) if isinstance(ask_for, str) else ask_for

    def ask(scene, rng):
        found = _named(scene, rng, [item for item in scene.items if value(item)], attributes)
        return found and (text.format(found[1]), value(found[0]))

    return ask


def _attribute(attribute: str):
    return _of_named(f"What {attribute} is the {{}}?", attribute, _others(attribute))


def _count(scene, rng):
    attribute, value = scene.counted
    if not attribute:
        return "How many objects are there?", str(len(scene.items))
    number = sum(getattr(item, attribute) == value for item in scene.items)
    noun = f"{value} objects" if attribute != "shape" else f"{value}es" if value == "cross" else f"{value}s"
    return f"How many {noun} are there?", str(number)


def _exist(scene, rng):
    """Yes and no are equally likely; in half of the noes, color and shape both occur, on different items."""
    present = {(item.color, item.shape) for item in scene.items}
    if rng.random() < 0.5:
        pair, answer = pick(rng, sorted(present)), "yes"
    else:
        colors, shapes = ({pair[i] for pair in present} for i in (0, 1))
        absent = [pair for pair in product(COLORS, SHAPES) if pair not in present]
        swapped = [pair for pair in absent if pair[0] in colors and pair[1] in shapes]
        half = [pair for pair in absent if (pair[0] in colors) != (pair[1] in shapes)]
        pair, answer = pick(rng, swapped if swapped and rng.random() < 0.5 else half), "no"
    return f"Is there {'an' if pair[0] == 'orange' else 'a'} {pair[0]} {pair[1]}?", answer


def side_of(item: Item, other: Item) -> str:
    """Where an item is, seen from another: one of SIDES, or "" if it is clearly on none."""
    dx, dy = item.x - other.x, item.y - other.y
    if abs(dx) >= 2 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= 2 * abs(dx):
        return "above" if dy < 0 else "below"
    return ""


def _side(scene, rng):
    pairs = [
        (side, names)
        for item, other in permutations(scene.items, 2)
        if (side := side_of(item, other))
        and (names := (_names(scene, item, NAMING), _names(scene, other, NAMING)))
        and all(names)
    ]
    if not pairs:
        return None
    side, (names, other_names) = pick(rng, pairs)
    first, second = pick(rng, names), pick(rng, other_names)
    return f"Where is the {first}, seen from the {second}: left, right, above or below?", side


def _beyond(item: Item, other: Item, side: str) -> float:
    """How far an item is to one side of another, as a share of the picture's side; negative if opposite."""
    axis = "x" if side in ("left", "right") else "y"
    difference = getattr(item, axis) - getattr(other, axis)
    return -difference if side in ("left", "above") else difference


def _only_one_beyond(scene: Scene) -> Iterator[tuple[str, Item, Item]]:
    """Yield (phrase, item, the only item on that side of it), if no item is near the border of the sides."""
    for item, side in product(scene.items, SIDES):
        ways = [(_beyond(other, item, side), other) for other in scene.items if other is not item]
        there = [other for way, other in ways if way > 0]
        if len(there) == 1 and all(abs(way) >= CLEAR for way, _ in ways):
            yield PHRASES[side], item, there[0]


def _clearly_nearest(scene: Scene) -> Iterator[tuple[str, Item, Item]]:
    """Yield ("nearest to", item, the item that is nearest to it), if it is clearly nearest."""
    for item in scene.items:
        far = sorted(
            (math.hypot(item.x - other.x, item.y - other.y), i)
            for i, other in enumerate(scene.items)
            if other is not item
        )
        if len(far) > 1 and far[1][0] >= CLEARLY_NEARER * far[0][0]:
            yield "nearest to", item, scene.items[far[0][1]]


def _related(attribute: str, pairs: Callable[[Scene], Iterator[tuple[str, Item, Item]]]):
    """Make a form's `ask`, about the item that has a relation to a named item."""

    def ask(scene, rng):
        found = [
            (relation, names, other)
            for relation, item, other in pairs(scene)
            if (names := _names(scene, item, _others(attribute)))
        ]
        if not found:
            return None
        relation, names, other = pick(rng, found)
        text = f"What {attribute} is the object {relation} the {pick(rng, names)}?"
        return text, getattr(other, attribute)

    return ask


def _extremes(scene: Scene) -> Iterator[tuple[str, Item]]:
    for word, (axis, sign) in EXTREMES.items():
        ordered = sorted(scene.items, key=lambda item: sign * getattr(item, axis))
        if len(ordered) > 1 and abs(getattr(ordered[1], axis) - getattr(ordered[0], axis)) >= CLEAR:
            yield f"{word} object", ordered[0]


def _by_size(word: str, sign: int):
    def found(scene: Scene) -> Iterator[tuple[str, Item]]:
        order = sorted(scene.items, key=lambda item: sign * item.radius)
        if len(order) > 1 and order[0].size != order[1].size:
            yield f"{word} object", order[0]

    return found


def quadrant_of(item: Item) -> str:
    """The quarter of the picture that contains an item's centre; "" if the centre is near a border."""
    if min(abs(item.x - 0.5), abs(item.y - 0.5)) < CLEAR:
        return ""
    return ("top" if item.y < 0.5 else "bottom") + (" left" if item.x < 0.5 else " right")


def _alone_in_quadrant(scene: Scene) -> Iterator[tuple[str, Item]]:
    places = [quadrant_of(item) for item in scene.items]
    if "" not in places:
        for item, place in zip(scene.items, places, strict=True):
            if places.count(place) == 1:
                yield f"object in the {place} quarter", item


def _singled_out(attribute: str, described: Callable[[Scene], Iterator[tuple[str, Item]]]):
    """Make a form's `ask`, about an item that is the only one to fit a description."""

    def ask(scene, rng):
        found = list(described(scene))
        if not found:
            return None
        description, item = pick(rng, found)
        return f"What {attribute} is the {description}?", getattr(item, attribute)

    return ask


def _larger(scene, rng):
    attribute = pick(rng, ("color", "shape"))
    pairs = [
        (item, other)
        for item, other in permutations(scene.items, 2)
        if item.size != other.size
        and _matches(scene, item, [attribute]) == _matches(scene, other, [attribute]) == 1
    ]
    if not pairs:
        return None
    first, second = pick(rng, pairs)
    larger = max(first, second, key=lambda item: item.radius)
    text = f"Which is larger, the {name_of(first, [attribute])} or the {name_of(second, [attribute])}?"
    return text, getattr(larger, attribute)


def _most(attribute: str):
    def ask(scene, rng):
        counts = Counter(getattr(item, attribute) for item in scene.items).most_common(2)
        if len(scene.items) < 2 or (len(counts) > 1 and counts[0][1] == counts[1][1]):
            return None
        return f"Which {attribute} is the most frequent?", counts[0][0]

    return ask


def pattern_of(item: Item) -> str:
    """The item's pattern, or "" if it has a text instead."""
    return "" if item.text else item.pattern


_COLORS, _SIZES, _FINENESS = tuple(COLORS), tuple(SIZES), tuple(FINENESS)
FORMS: dict[str, Form] = {
    "color": Form("attribute", _COLORS, _attribute("color")),
    "shape": Form("attribute", SHAPES, _attribute("shape")),
    "size": Form("attribute", _SIZES, _attribute("size")),
    "count_some": Form("count", tuple(map(str, range(MAX_ITEMS))), _count),
    "count_all": Form("count", tuple(map(str, range(1, MAX_ITEMS + 1))), _count),
    "side": Form("relation", SIDES, _side),
    "beside_color": Form("relation", _COLORS, _related("color", _only_one_beyond)),
    "beside_shape": Form("relation", SHAPES, _related("shape", _only_one_beyond)),
    "nearest_color": Form("relation", _COLORS, _related("color", _clearly_nearest)),
    "nearest_shape": Form("relation", SHAPES, _related("shape", _clearly_nearest)),
    "extreme_color": Form("relation", _COLORS, _singled_out("color", _extremes)),
    "extreme_shape": Form("relation", SHAPES, _singled_out("shape", _extremes)),
    "larger": Form("compare", (), _larger),
    "largest_color": Form("compare", _COLORS, _singled_out("color", _by_size("largest", -1))),
    "largest_shape": Form("compare", SHAPES, _singled_out("shape", _by_size("largest", -1))),
    "smallest_color": Form("compare", _COLORS, _singled_out("color", _by_size("smallest", 1))),
    "smallest_shape": Form("compare", SHAPES, _singled_out("shape", _by_size("smallest", 1))),
    "most_color": Form("compare", _COLORS, _most("color")),
    "most_shape": Form("compare", SHAPES, _most("shape")),
    "text": Form("read", TEXTS, _of_named("What is written on the {}?", "text")),
    "pattern": Form("texture", PATTERNS, _of_named("What pattern is on the {}?", pattern_of)),
    "direction": Form(
        "texture", DIRECTIONS, _of_named("In which direction do the stripes on the {} run?", "direction")
    ),
    "fineness": Form(
        "texture", _FINENESS, _of_named("Is the pattern on the {} fine, medium or coarse?", "fineness")
    ),
    "quadrant": Form(
        "locate", QUADRANTS, _of_named("In which quarter of the picture is the {}?", quadrant_of)
    ),
    "quadrant_color": Form("locate", _COLORS, _singled_out("color", _alone_in_quadrant)),
    "quadrant_shape": Form("locate", SHAPES, _singled_out("shape", _alone_in_quadrant)),
    "exist": Form("exist", ("yes", "no"), _exist),
}
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(form.family for form in FORMS.values()))


def ask_all(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of each family that the scene allows, in random order."""
    questions = []
    for family in FAMILIES:
        forms = [name for name, form in FORMS.items() if form.family == family and _fits(name, scene)]
        first, *rest = rng.permutation(forms).tolist()
        # No fallback to "pattern": where the other forms cannot be asked, all items are plain, so that its
        # answer would be known
        for name in (first, *(name for name in rest if name != "pattern")):
            if asked := FORMS[name].ask(scene, rng):
                questions.append(Question(family, *asked, name))
                break
    return [questions[i] for i in rng.permutation(len(questions))]


def _fits(form: str, scene: Scene) -> bool:
    """Whether a form can be asked: of the two counting forms, only the one that the scene was made for."""
    return form != ("count_some" if not scene.counted[0] else "count_all")
