"""LLaVA's training records: reading them, and saying what is wrong with one.

A record is {"id": ..., "image": file or [files], "system": words, "conversations": [{"from": "human" | "gpt",
"value": words}, ...]}; the human speaks first, the gpt last, and each image has its <image> in a human turn.
Text only: no "image". "system", or a first turn from "system", stands in the place of the template's own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.text import replace_surrogates
from llava.textfile import HEAD, SUFFIXES, kind_of, open_text

SPEAKERS = ("human", "gpt")
SYSTEM = "system"
CHUNK = 1 << 16  # characters read at once
MAX_RECORD = 1 << 26  # characters in which a record of a JSON list must end
MAX_SHOWN = 100  # characters of a value that a message shows

KINDS_EXPECTED = "records come in JSON or JSONL files, or in tar shards ('a/{00..63}.tar')"
YAML = (
    "a YAML file",
    "name the JSON files that it lists after --data_path, and their shares after --data_weights",
)
CSV = ("a table", "make records of its rows, as docs/finetune_custom_data.md shows")
YAML_LINE = re.compile(r"(#|---|- \S|[\w.-]+:(\s|$))")

_FILES = r"s?(_?(file|path|url|list)s?)?"
# What a key may be called elsewhere (in lower case, "-" as "_"), by its name here
SPELLINGS = {
    "image": re.compile(rf"(image|img|picture|photo){_FILES}"),
    "conversations": re.compile(r"conversations?|messages?|dialog(ue)?s?|turns|chat"),
    SYSTEM: re.compile(r"system(_?(prompt|message|text))?"),
}
UNSEEN = re.compile(rf"(video|audio|sound|speech){_FILES}")  # what no model of this package takes
TURN_SPELLINGS = {"role": "from", "content": "value"}


class BadRecord(UserError):
    """A record that cannot be trained on; the message names it, the problem and the remedy."""


def iter_records(path: str | Path) -> Iterator[Any]:
    """Read a JSON list, or JSONL (one record a line), holding one record at a time.

    Yields:
        Each record as it is, unchecked; for a line of JSONL that is no JSON a BadRecord that says so, for the
        lines after it are still good.
    Raises:
        UserError: if the file is missing, empty or, for a list, no JSON; names the file and the line.
    """
    check_data_file(path)
    with open_text(path) as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        if not start:
            raise UserError(f"{path} is empty; it needs a JSON list of records, or one record a line.")
        file.seek(0)
        yield from _JsonList(file, path) if start == "[" else _json_lines(file, path)


def check_data_file(path: str | Path) -> None:
    """Whether a --data_path is a JSON or JSONL file, by its first bytes and its name.

    Raises:
        UserError: if it is not there, or of another kind: says what it is, what is expected and what to do.
    """
    found = ("a folder", "name the files in it") if os.path.isdir(path) else None
    suffix = Path(path).suffix.lower()
    try:
        if found is None:
            with open(path, "rb") as file:
                found = _other_kind(file.read(HEAD), suffix)
    except (OSError, ValueError) as error:
        found = SUFFIXES.get(suffix)
        if found is None:
            raise UserError(f"Cannot read the records in {path} ({error}); check --data_path.") from error
    if found is not None:
        raise UserError(f"{path} is {found[0]}, but {KINDS_EXPECTED}: {found[1]}, or check --data_path.")


def _other_kind(head: bytes, suffix: str) -> tuple[str, str] | None:
    """What a file that starts so is, if it holds no JSON, and what to do."""
    if kind := kind_of(head):
        return kind
    text = head.decode("utf-8-sig", "replace").lstrip()
    line = text.split("\n")[0].rstrip()
    if suffix in (".jsonl", ".ndjson") or not text:  # a broken line is a bad record among good ones
        return None
    if line == "{":
        return "one JSON object over several lines", "make it a list of records, or one record a line"
    if text[0] in "[{":
        return None
    if suffix in (".yaml", ".yml") or YAML_LINE.match(line):
        return YAML
    if suffix in (".csv", ".tsv") or "," in line or "\t" in line:
        return CSV
    return SUFFIXES.get(suffix) or (f"no JSON: it starts with {_shown(line)}", "make it JSON or JSONL")


def _json_lines(file: TextIO, path: str | Path) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:  # a number or a nesting without end, too
                column, problem = getattr(error, "colno", 1), getattr(error, "msg", str(error))
                yield BadRecord(_position(path, number, column, problem))


def _position(path: str | Path, line: int, column: int, problem: str) -> str:
    return (
        f"{path}, line {line}, column {column}: {problem}; correct it, "
        "or fetch the file again if it was cut short."
    )


class _JsonList:
    """The items of a JSON list, one after another: the file is never in memory as a whole."""

    def __init__(self, file: TextIO, path: str | Path):
        self.file, self.path = file, path
        self.text, self.ended = "", False  # what is read and not yet taken
        self.line, self.column = 1, 1  # of the text's first character
        self.decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[Any]:
        assert self._next() == "["
        self._take(1)
        if self._next() == "]":
            raise UserError(f"{self.path} holds an empty list; it needs at least one record.")
        while True:
            yield self._value()
            mark = self._next()
            if mark not in (",", "]"):
                raise self._error("expected ',' or ']'", 0)
            self._take(1)
            following = self._next()
            if mark == "]" and following:
                raise self._error("expected nothing after the list", 0)
            if mark == "]":
                return

    def _next(self) -> str:
        """The next character that is no space, "" at the end; the text then starts with it."""
        while True:
            self._take(len(self.text) - len(self.text.lstrip()))
            if self.text or self.ended:
                return self.text[:1]
            self._read()

    def _value(self) -> Any:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text)
                if end < len(self.text) or self.ended:  # else a number may go on
                    self._take(end)
                    return value
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) > MAX_RECORD:
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number or a nesting without end
                raise self._error(str(error), 0) from error
            self._read()

    def _read(self) -> None:
        more = self.file.read(max(CHUNK, len(self.text)))
        self.text += more
        self.ended = not more

    def _take(self, length: int) -> None:
        self.line, self.column = self._place(length)
        self.text = self.text[length:]

    def _place(self, length: int) -> tuple[int, int]:
        """Line and column, from 1, `length` characters into the text."""
        num_lines = self.text.count("\n", 0, length)
        if not num_lines:
            return self.line, self.column + length
        return self.line + num_lines, length - self.text.rindex("\n", 0, length)

    def _error(self, problem: str, position: int) -> UserError:
        return UserError(_position(self.path, *self._place(position), problem))


def describe_record(path: str | Path, index: int, record: object) -> str:
    """Where a record is, for messages: file, position in the file from 0, and id."""
    name = record.get("id", "none") if isinstance(record, dict) else "none"
    return f"{path}, record {index} (id {replace_surrogates(str(name))})"


def image_files(record: dict) -> list[str]:
    """The record's image files, in order; empty for text only."""
    images = record.get("image") or []
    return [images] if isinstance(images, str) else list(images)


def turns_of(record: dict) -> list[dict]:
    """What human and gpt say in a valid record, by turns."""
    turns = record["conversations"]
    return turns[1:] if turns[0]["from"] == SYSTEM else turns


def system_text(record: dict) -> str | None:
    """What stands in the place of the template's own system text; None if a valid record says nothing."""
    first = record["conversations"][0]
    text = first["value"] if first["from"] == SYSTEM else record.get(SYSTEM)
    return text if text and text.strip() else None


def validate_record(record: object, where: str) -> None:
    """Check a record's form, opening no file.

    Args:
        record: as `iter_records` gives it.
        where: names the record, as `describe_record` does.
    Raises:
        BadRecord: naming the record, the problem and the remedy.
    """

    def refuse(problem: str) -> NoReturn:
        raise BadRecord(f"{where}: {problem}")

    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, dict):
        refuse(f"it is a {type(record).__name__}; make it an object with 'id', 'image' and 'conversations'.")
    _validate_keys(record, refuse)
    images = record.get("image")
    are_files = isinstance(images, list) and all(isinstance(file, str) and file for file in images)
    if images is not None and not isinstance(images, str) and not are_files:
        refuse(f"'image' is {_shown(images)}; make it a file name or a list of file names.")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        refuse("'conversations' is missing or empty; give it a question and an answer, or remove the record.")
    system = _validate_system(record, refuse)
    spoken = turns[1:] if _is_system_turn(turns[0]) else turns
    for index, turn in enumerate(spoken):
        _validate_turn(turn, index + len(turns) - len(spoken), SPEAKERS[index % 2], refuse)
    if len(spoken) % 2:
        refuse(f"the last of {len(spoken)} turns is the human's; add the gpt's answer, or remove the turn.")
    texts = {"'id'": str(record.get("id")), "'system'": system}
    texts |= {f"image {number}": file for number, file in enumerate(image_files(record))}
    texts |= {f"turn {number}": turn["value"] for number, turn in enumerate(turns)}
    _validate_characters(texts, refuse)
    num_marks = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in spoken)
    num_images = len(image_files(record))
    if num_marks != num_images:
        refuse(
            f"{num_marks} {DEFAULT_IMAGE_TOKEN} in the conversation but {num_images} image file(s); "
            f"write {DEFAULT_IMAGE_TOKEN} once for each file in 'image'."
        )


Refuse = Callable[[str], NoReturn]


def _validate_keys(record: dict, refuse: Refuse) -> None:
    """No key that means something is passed over in silence; one that says nothing may be there."""
    for key in (key for key, value in record.items() if value):
        plain = key.lower().replace("-", "_")
        if UNSEEN.fullmatch(plain):
            refuse(f"'{key}' is not read, for models here take pictures and text alone; remove the record.")
        for name, spelling in SPELLINGS.items():
            if key != name and not record.get(name) and spelling.fullmatch(plain):
                refuse(f"'{key}' is not read; name it '{name}'.")


def _is_system_turn(turn: object) -> bool:
    return isinstance(turn, dict) and turn.get("from") == SYSTEM


def _validate_system(record: dict, refuse: Refuse) -> str:
    """The system text, whether a key or the first turn says it; "" for none."""
    turns, text = record["conversations"], record.get(SYSTEM)
    if text is not None and not isinstance(text, str):
        refuse(f"'system' is {_shown(text)}; make it words, or leave it out.")
    if _is_system_turn(turns[0]):
        said = turns[0].get("value")
        if not isinstance(said, str):
            refuse(f"turn 0 (system) has the value {_shown(said)}; give it words, or remove the turn.")
        if len(turns) == 1:
            refuse("turn 0 is from 'system' and nobody follows; add a question and an answer.")
        if text and text != said:
            refuse("'system' and the first turn are two system texts; keep one of them.")
        text = said
    if text and DEFAULT_IMAGE_TOKEN in text:
        refuse(f"the system text contains {DEFAULT_IMAGE_TOKEN}; images belong in human turns.")
    return text or ""


def _validate_turn(turn: object, index: int, expected: str, refuse: Refuse) -> None:
    if isinstance(turn, dict):
        for key, name in TURN_SPELLINGS.items():
            if key in turn and name not in turn:
                refuse(f"turn {index}: '{key}' is not read; name it '{name}'.")
    if not isinstance(turn, dict) or turn.get("from") != expected:
        speaker = turn.get("from") if isinstance(turn, dict) else turn
        refuse(f"turn {index} is from {_shown(speaker)}, expected {expected!r}; turns alternate human, gpt.")
    words = turn.get("value")
    if not isinstance(words, str) or not words.strip():
        refuse(
            f"turn {index} ({expected}) has the value {_shown(words)}; give it words, or remove the record."
        )
    if expected == "gpt" and DEFAULT_IMAGE_TOKEN in words:
        refuse(f"turn {index}, an answer, contains {DEFAULT_IMAGE_TOKEN}; images belong in human turns.")


def _validate_characters(texts: dict[str, str], refuse: Refuse) -> None:
    """Tokenizers and file systems take no half of a character that UTF-16 writes as two."""
    for name, text in texts.items():
        if half := re.search("[\ud800-\udfff]", text):
            refuse(
                f"{name} holds U+{ord(half[0]):04X}, a lone surrogate, which is half a character; "
                "write the whole character, or remove the record."
            )


def _shown(value: object) -> str:
    """A value as Python writes it, the start alone if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
