"""GQA: exact match of a word or phrase.

Source: Hudson and Manning, "GQA: a new dataset for real-world visual reasoning and compositional question
answering", 2019, and its evaluation tool. All questions of the balanced split have equal weight.
"""

from collections.abc import Iterable
from typing import NamedTuple

from llava.eval.metrics.table import Table, mean_table


class GQAAnswer(NamedTuple):
    correct: bool
    structural_type: str  # the question's types.structural: query, verify, logical, choose or compare


def normalize_gqa_answer(text: str) -> str:
    """Return the text in lower case without final periods, as LLaVA submits it; the tool changes nothing."""
    return text.strip().rstrip(".").lower()


def gqa_correct(prediction: str, answer: str) -> bool:
    """Return whether the normalised prediction equals the annotated answer."""
    return normalize_gqa_answer(prediction) == answer


def gqa_table(answers: Iterable[GQAAnswer]) -> Table:
    """Return {"overall" | "open" | "binary": {"accuracy": Score}}; questions of type "query" are open."""
    rows = ((row.correct, ["open" if row.structural_type == "query" else "binary"]) for row in answers)
    return mean_table("accuracy", rows, ("open", "binary"))
