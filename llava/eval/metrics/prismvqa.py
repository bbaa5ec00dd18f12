"""PrismVQA: the accuracy in each family of questions beside its chance level, and the mean over families."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llava.errors import UserError
from llava.eval.metrics.proportion import SEED, percentile_interval, resampled_means
from llava.eval.metrics.table import Score, Table


class PrismVQAAnswer(NamedTuple):
    family: str
    correct: bool
    chance: float  # chance level of the question's form, 0..1


def prismvqa_table(answers: Iterable[PrismVQAAnswer]) -> Table:
    """Return the accuracy and the chance level of each family, and their means.

    Returns:
        {"mean" | family: {"accuracy" | "chance": Score}}, fractions in 0..1. For the mean's interval each
        family is resampled separately; chance is known, so its interval has width 0.
    Raises:
        UserError: if there are no answers, or a family is called "mean".
    """
    families: dict[str, list[PrismVQAAnswer]] = {}
    for answer in answers:
        families.setdefault(answer.family, []).append(answer)
    if not families or "mean" in families:
        raise UserError('PrismVQA: expected at least one answer, and no family named "mean".')
    rng = np.random.default_rng(SEED)
    table: Table = {"mean": {}}
    resampled = []
    for family in sorted(families):
        right = [float(answer.correct) for answer in families[family]]
        resampled.append(resampled_means(right, rng))
        chance = float(np.mean([answer.chance for answer in families[family]]))
        accuracy = Score(float(np.mean(right)), *percentile_interval(resampled[-1]), len(right))
        table[family] = {"accuracy": accuracy, "chance": Score(chance, chance, chance, len(right))}
    value, chance = (
        float(np.mean([table[family][column].value for family in families]))
        for column in ("accuracy", "chance")
    )
    total = sum(map(len, families.values()))
    interval = percentile_interval(np.mean(resampled, axis=0))
    table["mean"] = {
        "accuracy": Score(value, *interval, total),
        "chance": Score(chance, chance, chance, total),
    }
    return table
