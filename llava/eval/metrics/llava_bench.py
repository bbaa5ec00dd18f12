"""LLaVA-Bench (in the wild): a judge's points for an answer, compared with its points for GPT-4's answer.

Source: Liu et al., "Visual instruction tuning", 2023, section 5.1, and LLaVA's summary of the reviews.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llava.errors import UserError
from llava.eval.metrics.proportion import RESAMPLES, SEED, percentile_interval
from llava.eval.metrics.table import Score, Table

CATEGORIES = {"conv": "conversation", "detail": "detail", "complex": "complex reasoning"}


class LlavaBenchAnswer(NamedTuple):
    category: str  # a key of CATEGORIES
    reference: float  # points of GPT-4's answer, 1 to 10
    points: float  # points of the model's answer, 1 to 10


def parse_score_pair(review: str) -> tuple[float, float] | None:
    """Return the two scores, 1 to 10, in a review's first line, "8 7.5" or "8, 7.5"; None for other lines."""
    first = review.strip().split("\n")[0].strip()
    if not (pair := re.fullmatch(r"(\d+(?:\.\d+)?)[ ,]+(\d+(?:\.\d+)?)", first)):
        return None
    scores = float(pair[1]), float(pair[2])
    return scores if min(scores) >= 1 and max(scores) <= 10 else None


def llava_bench_table(answers: Iterable[LlavaBenchAnswer]) -> Table:
    """Return the score relative to GPT-4's, which is the one to quote, and the points of both, out of 10.

    Returns:
        {"overall" | category: {"relative": Score (a fraction), "points": Score, "GPT-4's points": Score}}.
    Raises:
        UserError: if there are no answers, or for an unknown category.
    """
    rows = list(answers)
    if not rows:
        raise UserError("LLaVA-Bench: no answers to score.")
    if unknown := {row.category for row in rows} - CATEGORIES.keys():
        raise UserError(
            f"LLaVA-Bench: unknown category {min(unknown)!r}; expected one of {', '.join(CATEGORIES)}."
        )
    parts = {"overall": rows}
    parts |= {name: [row for row in rows if row.category == key] for key, name in CATEGORIES.items()}
    return {name: _measures(part) for name, part in parts.items() if part}


def _measures(rows: list[LlavaBenchAnswer]) -> dict[str, Score]:
    pairs = np.array([(row.reference, row.points) for row in rows])  # float64[questions, 2]
    total = len(pairs)
    drawn = np.random.default_rng(SEED).multinomial(total, np.full(total, 1 / total), size=RESAMPLES)
    reference, points = pairs.mean(axis=0)
    references, all_points = (drawn @ pairs / total).T

    def score(value: float, resampled: np.ndarray) -> Score:
        return Score(float(value), *percentile_interval(resampled), total)

    return {
        "relative": score(points / reference, all_points / references),
        "points": score(points, all_points),
        "GPT-4's points": score(reference, references),
    }
