"""How a command of this package ends where its user can mend what is wrong."""

import sys
from collections.abc import Callable


def exit_code(action: Callable[[], object]) -> int:
    """Run `action`: 0, or 1 after printing the ValueError that says what to mend."""
    try:
        action()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
