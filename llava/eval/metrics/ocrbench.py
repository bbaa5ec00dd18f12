"""OCRBench: 1000 questions on text in images, with a point for each prediction that contains the answer.

Source: Liu et al., "OCRBench: on the hidden mystery of OCR in large multimodal models", 2023, and its tool.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.table import Score, Table, mean_table

TEXT_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
CATEGORIES = (
    *TEXT_RECOGNITION,
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)


class OCRBenchAnswer(NamedTuple):
    category: str  # the question's "type", one of CATEGORIES
    correct: int


def ocrbench_correct(dataset_name: str, answers: str | Sequence[str], prediction: str) -> int:
    """1 if the prediction contains one of the answers, else 0.

    Case is ignored, except in HME100k, which has formulas: there case counts and spaces are ignored.
    """
    formula = dataset_name == "HME100k"

    def normalise(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    said = normalise(prediction)
    return int(
        any(normalise(answer) in said for answer in ([answers] if isinstance(answers, str) else answers))
    )


def ocrbench_table(answers: Iterable[OCRBenchAnswer]) -> Table:
    """Return the points, which are the number of right answers: at most 1000, as the file has 1000 questions.

    Returns:
        {"overall" | "Text Recognition" | category: {"points": Score}}, each out of its `total`; "Text
        Recognition" sums the first six categories.
    Raises:
        UserError: if there are no answers, or for an unknown category.
    """
    rows = ((row.correct, _labels(row.category)) for row in answers)
    shares = mean_table("points", rows, ("Text Recognition", *CATEGORIES))
    return {label: {"points": _points(columns["points"])} for label, columns in shares.items()}


def _labels(category: str) -> list[str]:
    if category not in CATEGORIES:
        raise UserError(f"OCRBench: unknown type {category!r}; expected one of {', '.join(CATEGORIES)}.")
    return [category, "Text Recognition"] if category in TEXT_RECOGNITION else [category]


def _points(share: Score) -> Score:
    total = share.total
    return Score(round(share.value * total), share.low * total, share.high * total, total)
