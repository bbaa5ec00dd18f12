"""The error for what a user can correct; every other exception is a bug and keeps its traceback."""


class UserError(ValueError):
    """The message says what came, what was expected and what to do; it spells flags and files as users do."""
