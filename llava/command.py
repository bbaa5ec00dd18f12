"""How a command of this package ends where its user can mend what is wrong."""

import os
import sys
import traceback
from collections.abc import Callable

from llava.errors import UserError
from llava.quiet import quiet_libraries


def exit_code(action: Callable[[], object]) -> int:
    """Run `action`: 0, or 1 after printing the UserError that says what to mend."""
    quiet_libraries()
    try:
        action()
    except UserError as error:
        print(message(error), file=sys.stderr)
        return 1
    return 0


def message(error: UserError, command: str = "error") -> str:
    """One line, `command: error`; below the traceback where the environment has LLAVA_DEBUG=1."""
    line = f"{command}: {error}"
    if os.environ.get("LLAVA_DEBUG", "0") in ("", "0"):
        return line
    return "".join(traceback.format_exception(error)) + line
