"""DocVQA: average normalised Levenshtein similarity, ANLS.

Source: Biten et al., "Scene text visual question answering", 2019; Mathew et al., "DocVQA: a
dataset for VQA on document images", 2021.
"""

from collections.abc import Sequence

from llava.errors import UserError


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Similarity to the nearest answer, case and white space aside; the benchmark's score is its mean.

    Args:
        threshold: similarities below it count 0; one of just `threshold` counts, as in the official tool.
    Returns:
        0..1: 1 - edits / length of the longer text, characters.
    Raises:
        UserError: if there are no answers.
    """
    from rapidfuzz.distance import Levenshtein  # here, so that all other metrics do without it

    if isinstance(answers, str) or not answers:
        raise UserError(f"anls: expected a list of at least one answer, got {answers!r}.")
    said = _normalise(prediction)
    similarity = max(Levenshtein.normalized_similarity(said, _normalise(answer)) for answer in answers)
    return similarity if similarity >= threshold else 0.0


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
