"""Compare an answer with the expected words."""


def normalise(text: str) -> str:
    """Make lower case and single spaces, and drop final periods: "  Dark  red. " becomes "dark red"."""
    return " ".join(text.casefold().split()).rstrip(". ")


def exact_match(prediction: str, answer: str) -> bool:
    """Return whether two texts are equal apart from case, white space and trailing periods."""
    return normalise(prediction) == normalise(answer)
