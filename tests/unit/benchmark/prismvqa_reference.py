"""Answers PrismVQA's questions only from a scene's JSON and the words of the question."""

import re

WHAT = "color|shape|size"
COLOR_WORDS = {"red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray"}
SIZE_WORDS = {"small", "medium", "large"}
APART = 0.05  # the least distance about which a question asks


def answers_to(name: str, item: dict) -> bool:
    """Whether a name, for example "small red object" or "star", describes an item."""
    for word in name.split():
        if word == "object":
            continue
        key = "color" if word in COLOR_WORDS else "size" if word in SIZE_WORDS else "shape"
        if item[key] != word:
            return False
    return True


def the(name: str, items: list[dict]) -> dict:
    """The only item with that name; raises an error if there is none, or more than one."""
    (item,) = [item for item in items if answers_to(name, item)]
    return item


def how_far(item: dict, side: str, other: dict) -> float:
    """The distance of an item from another on that side; it is negative on the opposite side."""
    return {
        "left of": other["x"] - item["x"],
        "right of": item["x"] - other["x"],
        "above": other["y"] - item["y"],
        "below": item["y"] - other["y"],
    }[side]


def quarter(item: dict) -> str:
    assert abs(item["x"] - 0.5) >= APART
    assert abs(item["y"] - 0.5) >= APART
    return f"{'bottom' if item['y'] > 0.5 else 'top'} {'right' if item['x'] > 0.5 else 'left'}"


def answer(text: str, items: list[dict]) -> str:
    """The answer to a question; raises AssertionError or ValueError if the items do not decide it."""
    for pattern, solve in SOLVERS.items():
        if found := re.fullmatch(pattern, text):
            return solve(items, *found.groups())
    raise AssertionError(f"no such question: {text}")


def solve_count(items, noun):
    noun = noun.removesuffix("es") if noun.endswith("crosses") else noun.removesuffix("s")
    return str(sum(answers_to(noun, item) for item in items))


def solve_side(items, first, second):
    a, b = the(first, items), the(second, items)
    ways = {side: how_far(a, side, b) for side in ("left of", "right of", "above", "below")}
    ordered = sorted(ways, key=ways.get)
    assert ways[ordered[-1]] >= 2 * ways[ordered[-2]]
    return ordered[-1].split()[0]


def solve_beside(items, what, side, name):
    item = the(name, items)
    ways = [(how_far(other, side, item), other) for other in items if other is not item]
    assert all(abs(way) >= APART for way, _ in ways)
    (there,) = [other for way, other in ways if way > 0]
    return there[what]


def solve_nearest(items, what, name):
    item = the(name, items)

    def distance(other):
        return ((other["x"] - item["x"]) ** 2 + (other["y"] - item["y"]) ** 2) ** 0.5

    nearest, second = sorted((other for other in items if other is not item), key=distance)[:2]
    assert distance(second) >= 1.2 * distance(nearest)
    return nearest[what]


def solve_outermost(items, what, word):
    key = {
        "leftmost": lambda item: item["x"],
        "rightmost": lambda item: -item["x"],
        "topmost": lambda item: item["y"],
        "bottommost": lambda item: -item["y"],
    }[word]
    first, second = sorted(items, key=key)[:2]
    assert key(second) - key(first) >= APART
    return first[what]


def solve_larger(items, first, second):
    a, b = the(first, items), the(second, items)
    assert not 0.75 < a["radius"] / b["radius"] < 1.33
    return (first if a["radius"] > b["radius"] else second).removesuffix(" object")


def solve_by_size(items, what, word):
    radii = sorted((item["radius"] for item in items), reverse=word == "largest")
    assert not 0.75 < radii[0] / radii[1] < 1.33
    (item,) = [item for item in items if item["radius"] == radii[0]]
    return item[what]


def solve_most(items, what):
    values = [item[what] for item in items]
    assert len(values) > 1
    (most,) = {value for value in values if values.count(value) == max(map(values.count, values))}
    return most


def solve_in_quarter(items, what, place):
    (item,) = [item for item in items if quarter(item) == place]
    return item[what]


def solve_pattern(items, name):
    item = the(name, items)
    assert not item["text"]
    return item["pattern"]


def solve_fineness(items, name):
    pixels = 336 * the(name, items)["period"]
    return "fine" if 2 < pixels < 3.5 else "medium" if 3.5 < pixels < 5 else "coarse"


SOLVERS = {
    rf"What ({WHAT}) is the object nearest to the (.+)\?": solve_nearest,
    rf"What ({WHAT}) is the (leftmost|rightmost|topmost|bottommost) object\?": solve_outermost,
    rf"What ({WHAT}) is the (largest|smallest) object\?": solve_by_size,
    rf"What ({WHAT}) is the object (left of|right of|above|below) the (.+)\?": solve_beside,
    rf"What ({WHAT}) is the object in the (.+) quarter\?": solve_in_quarter,
    rf"What ({WHAT}) is the (.+)\?": lambda items, what, name: the(name, items)[what],
    rf"Which ({WHAT}) is the most frequent\?": solve_most,
    r"How many (.+) are there\?": solve_count,
    r"Is there an? (.+)\?": lambda items, name: "yes" if any(answers_to(name, i) for i in items) else "no",
    r"Where is the (.+), seen from the (.+): left, right, above or below\?": solve_side,
    r"Which is larger, the (.+) or the (.+)\?": solve_larger,
    r"What is written on the (.+)\?": lambda items, name: the(name, items)["text"],
    r"What pattern is on the (.+)\?": solve_pattern,
    r"In which direction do the stripes on the (.+) run\?": lambda items, name: the(name, items)["direction"],
    r"Is the pattern on the (.+) fine, medium or coarse\?": solve_fineness,
    r"In which quarter of the picture is the (.+)\?": lambda items, name: quarter(the(name, items)),
}
