"""The definition of a published command: its name, its flags and the function that it calls."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

from llava.command import Parser, exit_code

ANSWERS = "answers, JSON lines"  # a flag's help text
GOES_ON = "\n\nThe same command continues after an interruption. If no question is left, it loads no model."


@dataclass(frozen=True)
class Command:
    """A command under a name that users' scripts call.

    Args:
        name: the name of the module, such as llava.eval.eval_pope, or the path of the script.
        description: the text for --help.
        flags: maps each flag to its help, if it is a required path, or else to options of add_argument.
        action: does the work of the command, given the parsed flags.
        own_flags: adds the flags that `flags` cannot express.
    """

    name: str
    description: str
    flags: dict[str, str | dict]
    action: Callable[[argparse.Namespace], object]
    own_flags: Callable[[argparse.ArgumentParser], object] = lambda parser: None

    def main(self, argv: list[str] | None = None) -> int:
        parser = Parser(
            prog=f"python -m {self.name}" if self.name.startswith("llava.") else f"python {self.name}",
            description=self.description,
        )
        for flag, options in self.flags.items():
            if isinstance(options, str):
                options = {"help": options, "type": Path, "required": True}
            parser.add_argument(flag, **options)
        self.own_flags(parser)
        args = parser.parse_args(argv)
        return exit_code(lambda: self.action(args))


def command(
    name: str,
    flags: dict[str, str | dict],
    own_flags: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    note: str = "",
) -> Callable[[Callable[[argparse.Namespace], object]], Command]:
    """Decorate a function to make it a Command; --help shows the function's docstring, followed by `note`."""
    return lambda action: Command(name, f"{cleandoc(action.__doc__ or '')}{note}", flags, action, own_flags)
