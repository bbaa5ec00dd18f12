"""SEED-Bench: multiple choice on images and video frames, with twelve types of questions.

Source: Li et al., "SEED-Bench: benchmarking multimodal LLMs with generative comprehension", 2023.
"""

from collections.abc import Iterable
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.table import Table, mean_table

PARTS = ("image", "video")


class SeedAnswer(NamedTuple):
    correct: bool
    question_type: str  # its name, e.g. "Scene Understanding"
    data_type: str  # "image" or "video"


def seed_table(answers: Iterable[SeedAnswer]) -> Table:
    """Return {"overall" | "image" | "video" | question type: {"accuracy": Score}}.

    Raises:
        UserError: if there are no answers, or for a data type that is neither image nor video.
    """
    return mean_table("accuracy", ((row.correct, _labels(row)) for row in answers), PARTS)


def _labels(row: SeedAnswer) -> list[str]:
    if row.data_type not in PARTS:
        raise UserError(f"SEED-Bench: data_type must be image or video, got {row.data_type!r}.")
    return [row.data_type, row.question_type]
