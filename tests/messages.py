"""Checks the names that a message must contain, but not its sentences."""


def assert_names(message: str, *parts: object) -> None:
    """Check that each part is in the message: flag, file or key, value, allowed values, remedy."""
    lacking = [part for part in map(str, parts) if part not in message]
    assert not lacking, f"{lacking} should be in: {message}"
