"""The table of scores that each benchmark returns: rows are its parts, columns are measures."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.proportion import bootstrap_interval


class Score(NamedTuple):
    """A mean or a sum, the bounds of its 95% bootstrap interval, and the number of items behind it."""

    value: float
    low: float
    high: float
    total: int


Table = dict[str, dict[str, Score]]


def mean_score(values: Sequence[float]) -> Score:
    """Return the mean of the values, one per item.

    Raises:
        UserError: if there are no values.
    """
    low, high = bootstrap_interval(values)
    return Score(math.fsum(values) / len(values), low, high, len(values))


def mean_table(column: str, rows: Iterable[tuple[float, Iterable[str]]], order: Sequence[str] = ()) -> Table:
    """Return the mean over all items, and the mean over the items of each label.

    Args:
        column: name of the measure, e.g. "accuracy".
        rows: for each item its score and the labels of the parts that it belongs to.
        order: labels to list first; others follow in alphabetical order.
    Returns:
        {"overall" | label: {column: Score}}; a label without items has no row.
    Raises:
        UserError: if there are no rows, or a label is "overall".
    """
    values: dict[str, list[float]] = {"overall": []}
    for value, labels in rows:
        values["overall"].append(value)
        for label in labels:
            if label == "overall":
                raise UserError('a part of a benchmark cannot be called "overall"; rename the label.')
            values.setdefault(label, []).append(value)
    return {label: {column: mean_score(values[label])} for label in _sorted(values, ("overall", *order))}


def _sorted(labels: Iterable[str], order: Sequence[str]) -> list[str]:
    place = {label: i for i, label in enumerate(order)}
    return sorted(labels, key=lambda label: (place.get(label, len(place)), label))
