"""Text that every tokenizer accepts."""


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which UTF-8 cannot express."""
    if text.isascii():  # nearly all texts are ASCII, and there may be a hundred thousand
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
