"""GQA: exact match of a word or phrase.

Source: Hudson and Manning, "GQA: a new dataset for real-world visual reasoning and compositional question
answering", 2019, and its evaluation tool; the balanced split's questions count alike.
"""

from collections.abc import Iterable
from typing import NamedTuple

from llava.eval.metrics.table import Table, mean_table


class GQAAnswer(NamedTuple):
    correct: bool
    structural_type: str  # the question's types.structural: query, verify, logical, choose or compare


def normalize_gqa_answer(text: str) -> str:
    """Lower case without a period at the end, as LLaVA submits it; the tool itself changes nothing."""
    return text.strip().rstrip(".").lower()


def gqa_correct(prediction: str, answer: str) -> bool:
    """Whether a prediction, normalised, is the annotated answer."""
    return normalize_gqa_answer(prediction) == answer


def gqa_table(answers: Iterable[GQAAnswer]) -> Table:
    """{"overall" | "open" | "binary": {"accuracy": Score}}; open questions are those of type "query"."""
    rows = ((row.correct, ["open" if row.structural_type == "query" else "binary"]) for row in answers)
    return mean_table("accuracy", rows, ("open", "binary"))
