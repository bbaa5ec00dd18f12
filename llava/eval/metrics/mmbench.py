"""MMBench's circular evaluation: a question counts if it is right under every rotation of its options.

Source: Liu et al., "MMBench: is your multi-modal model an all-around player?", 2023.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.table import Table, mean_table


class CircularAnswer(NamedTuple):
    question: Hashable  # the same for all rotations of a question
    correct: bool
    first: bool  # whether the options are in their original order
    labels: tuple[str, ...] = ()  # e.g. its category


def circular_table(answers: Iterable[CircularAnswer]) -> Table:
    """Return two accuracies: with all rotations of a question right, and in the original order only.

    Returns:
        {"overall" | label: {"circular": Score, "vanilla": Score}}, fractions in 0..1 of `total` questions.
    Raises:
        UserError: if there are no answers, a question does not have exactly one answer in the original
            order, or the rotations of a question have different labels.
    """
    questions: dict[Hashable, list[CircularAnswer]] = {}
    for row in answers:
        questions.setdefault(row.question, []).append(row)
    circular, vanilla = [], []
    for name, rows in questions.items():
        firsts = [row for row in rows if row.first]
        if len(firsts) != 1:
            raise UserError(
                f"MMBench: question {name} has {len(firsts)} answers with unrotated options; expected 1."
            )
        if len({row.labels for row in rows}) != 1:
            raise UserError(f"MMBench: the rotations of question {name} have different categories.")
        circular.append((all(row.correct for row in rows), rows[0].labels))
        vanilla.append((firsts[0].correct, rows[0].labels))
    table, once = mean_table("circular", circular), mean_table("vanilla", vanilla)
    return {label: columns | once[label] for label, columns in table.items()}
