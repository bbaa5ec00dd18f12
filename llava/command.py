"""Parses the commands of this package, and ends them with a message if the user can correct an error."""

import argparse
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from llava.errors import UserError
from llava.quiet import quiet_libraries


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Adds its default to an option's help, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is False or action.default in (None, "", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command line whose options may be written with hyphens or with underscores: --a-b is --a_b.

    --help lists an option as it was added. No option may be abbreviated, so that a new option never makes an
    old command line ambiguous.
    """

    def __init__(self, **options):
        super().__init__(**{"formatter_class": _HelpFormatter, "allow_abbrev": False, **options})

    def parse_known_args(self, args=None, namespace=None):
        # Here, because the options of groups are not added through the parser's own add_argument
        known = self._option_string_actions
        for flag, action in list(known.items()):
            if flag.startswith("--"):
                known.setdefault("--" + flag[2:].replace("_", "-"), action)
                known.setdefault("--" + flag[2:].replace("-", "_"), action)
        with ending_with_reader():  # --help and --list print here
            return super().parse_known_args(args, namespace)


def positive(text: str) -> int:
    """The type of an option whose value is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_declared(
    parser, declared: dict[str, dict], flags: Iterable[str], defaults: dict[str, Any] | None = None
) -> None:
    """Let a command take some flags that are declared once for several commands.

    Args:
        parser: a parser or a group of one.
        declared: maps a flag's name with underscores to the keyword arguments of add_argument.
        flags: in the spelling that --help lists, such as "--model-path".
        defaults: maps a flag's name to a default that replaces the declared one.
    """
    for flag in flags:
        name = flag.removeprefix("--").replace("-", "_")
        own = {"default": defaults[name]} if defaults and name in defaults else {}
        parser.add_argument(flag, **{**declared[name], **own})


STDOUT = 1  # file descriptor


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """End the process quietly, as Unix tools do, if the reader of standard output has ended.

    `visualprism eval --list | head` is an example: head ends after ten lines, and the next write to the pipe
    raises BrokenPipeError. The process then exits with 141, the code of a command that SIGPIPE ended. A
    BrokenPipeError of another pipe or of a socket is raised as it is.
    """
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # the interpreter would flush at its end, and print the error
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # takes what is still to be flushed
        sys.exit(128 + signal.SIGPIPE)


def _reader_has_ended() -> bool:
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def exit_code(action: Callable[[], object]) -> int:
    """Run `action`. Returns 0, or 1 after printing a UserError, which says what to correct."""
    quiet_libraries()
    with ending_with_reader():
        try:
            action()
        except UserError as error:
            print(message(error), file=sys.stderr)
            return 1
    return 0


def message(error: UserError, command: str = "error") -> str:
    """Return one line, `command: error`, with LLAVA_DEBUG=1 in the environment below the traceback."""
    line = f"{command}: {error}"
    if os.environ.get("LLAVA_DEBUG", "0") in ("", "0"):
        return line
    return "".join(traceback.format_exception(error)) + line
