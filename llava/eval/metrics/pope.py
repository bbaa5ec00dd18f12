"""POPE: yes/no questions on objects that are or are not in the image.

Source: Li et al., "Evaluating object hallucination in large vision-language models", 2023.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from llava.errors import UserError
from llava.eval.metrics.proportion import RESAMPLES, SEED, percentile_interval
from llava.eval.metrics.table import Score, Table

YesNo = Literal["yes", "no"]
CELLS = (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))  # (predicted, label)
MEASURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


class PopeAnswer(NamedTuple):
    category: str  # adversarial, popular or random
    predicted: YesNo
    label: YesNo


def parse_yes_no(text: str) -> YesNo:
    """Return "no" if the first sentence has the word "No", "no" or "not", else "yes".

    A sentence ends at a period, commas are dropped, and words end at spaces. So "NO" and "nothing" mean yes.

    Source: LLaVA's POPE evaluation.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def pope_table(answers: Iterable[PopeAnswer]) -> Table:
    """Return accuracy, precision, recall, F1 and the fraction of yes; "yes" is the positive class.

    Returns:
        {category | "mean": {"accuracy" | "precision" | "recall" | "f1" | "yes_ratio": Score}}, fractions in
        0..1; a ratio with denominator 0 is 0. "mean" weighs all categories equally; papers quote its F1.
    Raises:
        UserError: if there are no answers, or one is neither yes nor no.
    """
    outcomes: dict[str, Counter] = {}
    for category, *outcome in answers:
        if not {"yes", "no"}.issuperset(outcome):
            raise UserError(f"POPE: expected yes or no, got (predicted, label) {tuple(outcome)}.")
        outcomes.setdefault(category, Counter())[tuple(outcome)] += 1
    if not outcomes:
        raise UserError("POPE: no answers to score.")
    rng = np.random.default_rng(SEED)
    measured, resampled, totals = {}, {}, {}
    for category in sorted(outcomes):
        counts = [outcomes[category][cell] for cell in CELLS]
        total = totals[category] = sum(counts)
        measured[category] = _measures(np.array(counts))
        draws = rng.multinomial(total, np.array(counts) / total, size=RESAMPLES)
        resampled[category] = _measures(draws)
    for by_category in (measured, resampled):
        by_category["mean"] = np.mean(list(by_category.values()), axis=0)
    totals["mean"] = sum(totals.values())
    return {
        row: {
            name: Score(float(value), *percentile_interval(drawn), totals[row])
            for name, value, drawn in zip(MEASURES, measured[row], resampled[row], strict=True)
        }
        for row in measured
    }


def _measures(counts: np.ndarray) -> np.ndarray:
    """Turn counts of CELLS, int[..., 4], into MEASURES, float64[5, ...]."""
    true_yes, false_yes, false_no, true_no = np.moveaxis(counts, -1, 0)
    said_yes, total = true_yes + false_yes, counts.sum(axis=-1)
    return np.stack(
        [
            _ratio(true_yes + true_no, total),
            _ratio(true_yes, said_yes),
            _ratio(true_yes, true_yes + false_no),
            _ratio(2 * true_yes, 2 * true_yes + false_yes + false_no),
            _ratio(said_yes, total),
        ]
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)  # whole = 0 implies part = 0
