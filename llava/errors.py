"""The error for what a user can mend; every other exception is a bug and keeps its traceback."""


class UserError(ValueError):
    """Says what came, what was expected and what to do, in the spelling of the flag or file it is about."""
