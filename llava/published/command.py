"""What a published command is: its name, its flags and the function that it calls."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

from llava.command import Parser, exit_code

ANSWERS = "answers, JSON lines"  # the help of a flag
GOES_ON = (
    "\n\nA command that was killed goes on where it stopped. If nothing is left to do, no model is loaded."
)


@dataclass(frozen=True)
class Command:
    """A command with a name that scripts of others call.

    Args:
        name: of the module, such as llava.eval.eval_pope, or the path of the script.
        description: for --help.
        flags: each flag to its help, if it is a required path, or else to the options of add_argument.
        action: from the parsed flags to what the command does.
        own_flags: adds those that are no such pairs.
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
    """Makes a Command of the function below it, whose docstring is what --help says, and then `note`."""
    return lambda action: Command(name, f"{cleandoc(action.__doc__ or '')}{note}", flags, action, own_flags)
