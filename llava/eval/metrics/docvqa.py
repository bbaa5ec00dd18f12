"""DocVQA: average normalised Levenshtein similarity, ANLS.

Source: Biten et al., "Scene text visual question answering", 2019; Mathew et al., "DocVQA: a
dataset for VQA on document images", 2021.
"""

from collections.abc import Sequence

from llava.errors import UserError


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Return the similarity to the nearest answer, up to case and white space; the benchmark takes its mean.

    Args:
        threshold: a lower similarity counts as 0; a similarity equal to it counts, as in the official tool.
    Returns:
        0..1: 1 - (number of edits) / (length of the longer text in characters).
    Raises:
        UserError: if there are no answers.
    """
    from rapidfuzz.distance import Levenshtein  # imported here: other metrics do not need it

    if isinstance(answers, str) or not answers:
        raise UserError(f"anls: expected a list of at least one answer, got {answers!r}.")
    said = _normalise(prediction)
    similarity = max(Levenshtein.normalized_similarity(said, _normalise(answer)) for answer in answers)
    return similarity if similarity >= threshold else 0.0


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
