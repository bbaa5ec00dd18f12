"""Compare an answer with the expected words."""


def normalise(text: str) -> str:
    """Lower-case, single spaces, no period at the end: "  Dark  red. " becomes "dark red"."""
    return " ".join(text.casefold().split()).rstrip(". ")


def exact_match(prediction: str, answer: str) -> bool:
    """Whether two texts are equal but for case, white space and a trailing period."""
    return normalise(prediction) == normalise(answer)
