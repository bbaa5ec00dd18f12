"""ScienceQA: questions of school exams with two to five options.

Source: Lu et al., "Learn to explain: multimodal reasoning via thought chains for science question answering",
2022; the table's rows are the columns of its results.
"""

from collections.abc import Iterable
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.table import Table, mean_table

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
COLUMNS = (*SUBJECTS.values(), "TXT", "IMG", "NO", "G1-6", "G7-12")


class ScienceQAAnswer(NamedTuple):
    correct: bool
    subject: str  # a key of SUBJECTS
    grade: str  # "grade1" to "grade12"
    has_text: bool  # the hint is not empty
    has_image: bool


def science_qa_table(answers: Iterable[ScienceQAAnswer]) -> Table:
    """Return the accuracy by subject, context and grade.

    A question with both a hint and an image counts in both TXT and IMG. LLaVA's ScienceQA-IMG is "IMG".

    Returns:
        {"overall" | "NAT" | "SOC" | "LAN" | "TXT" | "IMG" | "NO" | "G1-6" | "G7-12": {"accuracy": Score}}.
    Raises:
        UserError: if there are no answers, or for an unknown subject or grade.
    """
    return mean_table("accuracy", ((row.correct, _labels(row)) for row in answers), COLUMNS)


def _labels(row: ScienceQAAnswer) -> list[str]:
    if row.subject not in SUBJECTS:
        raise UserError(f"ScienceQA: unknown subject {row.subject!r}; expected one of {', '.join(SUBJECTS)}.")
    if row.grade not in {f"grade{grade}" for grade in range(1, 13)}:
        raise UserError(f"ScienceQA: unknown grade {row.grade!r}; expected grade1 to grade12.")
    context = [name for name, has in (("TXT", row.has_text), ("IMG", row.has_image)) if has] or ["NO"]
    grade = "G1-6" if int(row.grade.removeprefix("grade")) <= 6 else "G7-12"
    return [SUBJECTS[row.subject], *context, grade]
