"""What a message has to name, asked for without the sentence around it."""


def assert_names(message: str, *parts: object) -> None:
    """Each part is in the message: flag, file or key, the value that came, what is allowed, the remedy."""
    lacking = [part for part in map(str, parts) if part not in message]
    assert not lacking, f"{lacking} should be in: {message}"
