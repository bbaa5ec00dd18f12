"""LLaVA's training records: reading them, and saying what is wrong with one.

A record is {"id": ..., "image": file or [files], "conversations": [{"from": "human" | "gpt", "value":
words}, ...]}; the human speaks first, the gpt last, and each image has its <image> in a human turn. Text
only: no "image".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError

SPEAKERS = ("human", "gpt")
CHUNK = 1 << 16  # characters read at once
MAX_RECORD = 1 << 26  # characters in which a record of a JSON list must end


class BadRecord(UserError):
    """A record that cannot be trained on; the message names it, the problem and the remedy."""


def iter_records(path: str | Path) -> Iterator[object]:
    """Read a JSON list, or JSONL (one record a line), holding one record at a time.

    Yields:
        Each record as it is, unchecked; for a line of JSONL that is no JSON a BadRecord that says so, for the
        lines after it are still good.
    Raises:
        UserError: if the file is missing, empty or, for a list, no JSON; names the file and the line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            if not start:
                raise UserError(f"{path} is empty; it needs a JSON list of records, or one record a line.")
            file.seek(0)
            yield from _JsonList(file, path) if start == "[" else _json_lines(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the records in {path} ({error}); check --data_path.") from error


def _json_lines(file: TextIO, path: str | Path) -> Iterator[object]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                yield BadRecord(_position(path, number, error.colno, error.msg))


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

    def __iter__(self) -> Iterator[object]:
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

    def _value(self) -> object:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text)
                if end < len(self.text) or self.ended:  # else a number may go on
                    self._take(end)
                    return value
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) > MAX_RECORD:
                    raise self._error(error.msg, error.pos) from error
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
    return f"{path}, record {index} (id {name})"


def image_files(record: dict) -> list[str]:
    """The record's image files, in order; empty for text only."""
    images = record.get("image") or []
    return [images] if isinstance(images, str) else list(images)


def validate_record(record: object, where: str) -> None:
    """Check a record's form, opening no file.

    Args:
        record: as `iter_records` gives it.
        where: names the record, as `describe_record` does.
    Raises:
        BadRecord: naming the record, the problem and the remedy.
    """

    def refuse(problem: str) -> None:
        raise BadRecord(f"{where}: {problem}")

    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, dict):
        refuse(f"it is a {type(record).__name__}; make it an object with 'id', 'image' and 'conversations'.")
    images = record.get("image")
    are_files = isinstance(images, list) and all(isinstance(file, str) for file in images)
    if images is not None and not isinstance(images, str) and not are_files:
        refuse(f"'image' is {images!r}; make it a file name or a list of file names.")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        refuse("'conversations' is missing or empty; give it a question and an answer, or remove the record.")
    for index, turn in enumerate(turns):
        _validate_turn(turn, index, refuse)
    if len(turns) % 2:
        refuse(f"the last of {len(turns)} turns is the human's; add the gpt's answer, or remove the turn.")
    num_marks = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns)
    num_images = len(image_files(record))
    if num_marks != num_images:
        refuse(
            f"{num_marks} {DEFAULT_IMAGE_TOKEN} in the conversation but {num_images} image file(s); "
            f"write {DEFAULT_IMAGE_TOKEN} once for each file in 'image'."
        )


def _validate_turn(turn: object, index: int, refuse) -> None:
    expected = SPEAKERS[index % 2]
    if not isinstance(turn, dict) or turn.get("from") != expected:
        speaker = turn.get("from") if isinstance(turn, dict) else turn
        refuse(f"turn {index} is from {speaker!r}, expected {expected!r}; turns alternate human, gpt.")
    words = turn.get("value")
    if not isinstance(words, str) or not words.strip():
        refuse(f"turn {index} ({expected}) has the value {words!r}; give it words, or remove the record.")
    if expected == "gpt" and DEFAULT_IMAGE_TOKEN in words:
        refuse(f"turn {index}, an answer, contains {DEFAULT_IMAGE_TOKEN}; images belong in human turns.")
