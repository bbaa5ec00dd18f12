"""Reads records of a JSON list or of JSONL one at a time; the whole file is never in memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from llava.data.reader import Place, Reader
from llava.data.record import BadRecord
from llava.errors import UserError
from llava.textfile import open_text

CHUNK = 1 << 16  # characters read at once
MAX_RECORD = 1 << 26  # characters within which a record of a JSON list must end
MARK = b"\xef\xbb\xbf"  # the byte order mark of UTF-8
SPACE = re.compile(r"\s*")


class JsonReader(Reader):
    """Reads a JSON list or JSONL (one record a line). A place is (first byte, length in bytes) of a record.

    A line of JSONL that is not JSON becomes a BadRecord, since the lines after it can still be good.
    """

    _file: int | None = None  # each process opens its own

    def __getstate__(self) -> dict:
        return {**vars(self), "_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def rows(self) -> Iterator[tuple[Any, Place]]:
        """See Reader.rows. Raises UserError if the file is empty, or a list in it is not valid JSON."""
        with open_text(self.path, newline="") as file:
            first = len(MARK) if file.buffer.peek(len(MARK)).startswith(MARK) else 0  # type: ignore[attr-defined]
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            if not start:
                raise UserError(
                    f"{self.path} is empty; it needs a JSON list of records, or one record per line."
                )
            file.seek(0)
            yield from (_JsonList if start == "[" else _JsonLines)(file, self.path, first)

    def done(self, place: Place) -> int:
        return sum(place)

    def row(self, place: Place) -> Any:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._check_unchanged(0, os.fstat(self._file))
        start, length = place
        try:
            return json.loads(os.pread(self._file, length, start))
        except ValueError as error:
            raise self._changed(0) from error


def _position(path: str | Path, line: int, column: int, problem: str) -> str:
    return (
        f"{path}, line {line}, column {column}: {problem}; correct it, "
        "or fetch the file again if it was cut short."
    )


class _JsonLines:
    """The records of JSONL, with their places."""

    def __init__(self, file: TextIO, path: str | Path, first: int):
        self.file, self.path, self.first = file, path, first

    def __iter__(self) -> Iterator[tuple[Any, Place]]:
        start = self.first
        for number, line in enumerate(self.file, start=1):
            length = _num_bytes(line)
            if line.strip():
                yield self._value(line, number), (start, length)
            start += length

    def _value(self, line: str, number: int) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:  # also for too long a number or too deep a nesting
            column, problem = getattr(error, "colno", 1), getattr(error, "msg", str(error))
            return BadRecord(_position(self.path, number, column, problem))


class _JsonList:
    """The items of a JSON list, one after another, with their places."""

    def __init__(self, file: TextIO, path: str | Path, first: int):
        self.file, self.path = file, path
        self.text, self.taken, self.ended = "", 0, False  # text, characters of it parsed, end of file reached
        self.line, self.column = 1, 1  # position of the text's first character
        self.byte = first  # position of the first character that is not parsed
        self.decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[tuple[Any, Place]]:
        assert self._next() == "["
        self._take(1)
        if self._next() == "]":
            raise UserError(f"{self.path} contains an empty list; it needs at least one record.")
        while True:
            yield self._value()
            mark = self._next()
            if mark not in (",", "]"):
                raise self._error("expected ',' or ']'", self.taken)
            self._take(1)
            following = self._next()
            if mark == "]" and following:
                raise self._error("expected nothing after the list", self.taken)
            if mark == "]":
                return

    def _next(self) -> str:
        """Skip white space and return the next character without taking it; "" at the end of the file."""
        while True:
            self._take(SPACE.match(self.text, self.taken).end() - self.taken)  # type: ignore[union-attr]
            if self.taken < len(self.text) or self.ended:
                return self.text[self.taken : self.taken + 1]
            self._read()

    def _value(self) -> tuple[Any, Place]:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.taken)
                if end < len(self.text) or self.ended:  # else a number may continue in the next chunk
                    start = self.byte
                    self._take(end - self.taken)
                    return value, (start, self.byte - start)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.taken > MAX_RECORD:
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # too long a number or too deep a nesting
                raise self._error(str(error), self.taken) from error
            self._read()

    def _read(self) -> None:
        """Read the next chunk, and drop the text that is parsed."""
        self.line, self.column = self._place(self.taken)
        self.text, self.taken = self.text[self.taken :], 0
        more = self.file.read(max(CHUNK, len(self.text)))
        self.text += more
        self.ended = not more

    def _take(self, length: int) -> None:
        end = self.taken + length
        self.byte += length if self.text.isascii() else _num_bytes(self.text[self.taken : end])
        self.taken = end

    def _place(self, position: int) -> tuple[int, int]:
        """The line and column, counted from 1, of a position in the text."""
        num_lines = self.text.count("\n", 0, position)
        if not num_lines:
            return self.line, self.column + position
        return self.line + num_lines, position - self.text.rindex("\n", 0, position)

    def _error(self, problem: str, position: int) -> UserError:
        return UserError(_position(self.path, *self._place(position), problem))


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
