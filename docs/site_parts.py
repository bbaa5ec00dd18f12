"""The parts of pages that are made from the code when the site is built.

A page marks the place of a part with a comment such as <!-- part: training_flags -->.
"""

import dataclasses
import enum
import io
import os
import re
import runpy
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from unittest import mock

from site_pages import flags_as_code

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"^<!-- part: (\w+) -->$", re.M)
COLUMNS = "88"  # width of the pages of help


def fill(text: str) -> str:
    """Return a page with its parts in their places. Raises KeyError if there is no such part."""
    return PLACE.sub(lambda match: PARTS[match[1]](), text)


def table(head: Sequence[str], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table of the class `flags`, which static/site.css lays out for phones."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(["{.flags}", *(f"| {' | '.join(cells)} |" for cells in lines)])


def plain(text: str) -> str:
    """Text for a cell of a Markdown table, in which only `code` is markup; flags become code."""
    parts = re.split(r"(`[^`]*`)", flags_as_code(" ".join(text.split())))
    parts[::2] = [re.sub(r"([\\*_<>\[\]{}~])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts).replace("|", "\\|")


def code(value: object) -> str:
    """A default as a cell shows it; nothing for None and for the empty string."""
    value = value.value if isinstance(value, enum.Enum) else value
    return "" if value in (None, "") else f"`{value}`"


def training_flags() -> str:
    """A table for each group of this project's own training flags."""
    from llava.train.flags import declared_flags

    parts = []
    for title, flags in declared_flags().items():
        rows = [
            (
                f"`--{flag.name}`",
                f"{flag.kind}, one or more" if flag.many else flag.kind,
                code(flag.default),
                plain(flag.help_text),
            )
            for flag in flags
        ]
        parts.append(f"## {title.capitalize()}\n\n{table(('flag', 'type', 'default', 'meaning'), rows)}")
    return "\n\n".join(parts)


def inherited() -> list[dataclasses.Field]:
    """The trainer's fields that are transformers' own."""
    from llava.train.arguments import TrainingArguments
    from llava.train.flags import TrainingFlags

    own = {field.name for field in dataclasses.fields(TrainingFlags)}
    return [field for field in dataclasses.fields(TrainingArguments) if field.name not in own]


def transformers_flags() -> str:
    """The flags that come from transformers.TrainingArguments and are not refused with every value."""
    from llava.train.refused import REFUSED

    rows = []
    for field in inherited():
        if field.name not in REFUSED:
            made = field.default is dataclasses.MISSING
            default = field.default_factory() if made else field.default  # type: ignore[misc]
            text = field.metadata["help"].replace("%%", "%")
            rows.append((f"`--{field.name}`", code(default), plain(text)))
    return table(("flag", "default", "meaning"), rows)


def refused_flags() -> str:
    from llava.train.refused import REFUSED

    rows = [(f"`--{flag}`", plain(reason)) for flag, reason in REFUSED.items()]
    return table(("flag, some with a value", "reason"), rows)


@cache
def help_of(module: str, *first: str) -> str:
    """What `python -m MODULE FIRST... --help` prints."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module, *first, "--help"]),
        mock.patch.dict(os.environ, COLUMNS=COLUMNS),
        redirect_stdout(printed),
        warnings.catch_warnings(),
        suppress(SystemExit),
    ):
        warnings.simplefilter("ignore")  # runpy warns about a module that is imported already
        runpy.run_module(module, run_name="__main__")
    return printed.getvalue()


def help_pages() -> dict[str, str]:
    """What each command of `visualprism` prints for --help."""
    from llava.__main__ import COMMANDS

    return {name: help_of(command.module, *command.first) for name, command in COMMANDS.items()}


def inference_flags() -> str:
    """The flags that several commands share, each with the commands that have it."""
    from llava.inference import FLAGS

    pages = {command: "".join(page.split()) for command, page in help_pages().items()}
    rows = []
    for name, options in FLAGS.items():
        takers = [command for command, page in pages.items() if "".join(options["help"].split()) in page]
        hyphens = f"--{name.replace('_', '-')}"
        known = any(hyphens in pages[command] for command in takers) or not takers
        choices = f". One of {', '.join(options['choices'])}" if "choices" in options else ""
        rows.append(
            (
                f"`{hyphens if known else f'--{name}'}`",
                code(options.get("default")),
                plain(options["help"] + choices),
                ", ".join(takers) or "LLaVA's commands",
            )
        )
    return table(("flag", "default", "meaning", "commands"), rows)


def commands() -> str:
    """The help of each command but training, whose flags have a page of their own."""
    from llava.__main__ import COMMANDS

    return "\n\n".join(
        f"## {name}\n\nAlso `{COMMANDS[name].long_name}`.\n\n```text\n{page.rstrip()}\n```"
        for name, page in help_pages().items()
        if name != "train"
    )


def scripts() -> str:
    """The comment at the top of each script that users start, which is what its --help prints."""
    parts = []
    for folder in ("scripts", "scripts/v1_5", "scripts/v1_5/eval"):
        for path in sorted((ROOT / folder).glob("*.sh")):
            text = path.read_text(encoding="utf-8").split("\n", 1)[1]
            comment = re.match(r"(?:#.*\n)+", text)[0]  # type: ignore[index]
            if not comment.startswith("# Sourced"):
                lines = re.sub(r"^# ?", "", comment, flags=re.M).rstrip()
                parts.append(f"## {path.relative_to(ROOT).as_posix()}\n\n```text\n{lines}\n```")
    return "\n\n".join(parts)


PARTS = {
    part.__name__: part
    for part in (training_flags, transformers_flags, refused_flags, inference_flags, commands, scripts)
}
