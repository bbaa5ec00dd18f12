"""Read JSON-lines files that may be damaged; errors name file, line and byte, and say how to repair it."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from llava.errors import UserError
from llava.progress import by_bytes
from llava.text import replace_surrogates
from llava.textfile import open_bytes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows editors put it before UTF-8 text
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # the start of a surrogate's escape in JSON
FLOAT_LIMIT = 10**308  # whole numbers below it fit into a float
ANEW = "fetch or make the file again"

PLAIN = {str, int, dict, list}  # types whose values need no further check
ID = (str, float)  # the form of a question's id
NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: its number in the file, from 1.
        start: the number of bytes before it in the file.
        content: its bytes, including the line end.
        is_last: whether the file ends with it.
        otherwise: the remedy that errors suggest if no line of the file is worth keeping.
    """

    path: str | Path
    number: int
    start: int
    content: bytes
    is_last: bool
    otherwise: str = ANEW

    def error(self, problem: str, byte: int = 0) -> UserError:
        """Return the error to raise for a problem that begins at `byte` of this line, counted from 0."""
        file, good, before = shlex.quote(str(self.path)), shlex.quote(f"{self.path}.good"), self.number - 1
        remedies = []
        if before:
            command = f"head -n {before} {file} > {good} && mv {good} {file}"
            remedies.append(f"keep the {before} line(s) before this one: {command}")
        if before and not self.is_last:
            remedies.append(f"remove only this line: sed -i {self.number}d {file}")
        remedies.append(self.otherwise)
        where = f"{self.path}, line {self.number}"
        place = f"byte {self.start + byte} of the file"
        return UserError(f"{where}: {problem} ({place}); {'; or '.join(remedies)}.")

    def row(self, form: dict | None = None) -> dict:
        """Parse the line into its object.

        Args:
            form: the expected form, see misfit.
        Raises:
            UserError: if the line is damaged, is not a JSON object, or does not have the form.
        """
        if b"\0" in self.content:
            raise self.error("contains NUL bytes, for example after a power cut", self.content.index(b"\0"))
        try:
            text = self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason})", error.start) from None
        try:
            row = parse(text)
        except json.JSONDecodeError as error:
            byte = len(text[: error.pos].encode())
            raise self.error(f"not JSON ({error.msg}); one object per line is expected", byte) from None
        except (ValueError, RecursionError) as error:  # a number too long, or brackets nested too deeply
            raise self.error(f"JSON that cannot be read ({error})") from None
        if not isinstance(row, dict):
            raise self.error(f"expected a JSON object, got {type(row).__name__}")
        if form and (problem := misfit(row, form)):
            raise self.error(problem)
        return row


def lines_of(path: str | Path, otherwise: str = ANEW) -> Iterator[Line]:
    """Yield the lines of a file one by one, without blank lines.

    Raises:
        UserError: if the file cannot be opened, or its first bytes show that it is not text in UTF-8.
    """
    with open_bytes(path) as file:
        start, size = 0, os.fstat(file.fileno()).st_size
        for number, content in enumerate(by_bytes(file, file, f"reading {Path(path).name}"), start=1):
            text = content.removeprefix(BYTE_ORDER_MARK) if number == 1 else content
            if text.strip():
                is_last = start + len(content) == size
                yield Line(path, number, start + len(content) - len(text), text, is_last, otherwise)
            start += len(content)


def read_jsonl(path: str | Path, form: dict | None = None) -> list[dict]:
    """Read all rows of a JSON-lines file.

    Args:
        form: the expected form of each row, see misfit.
    Raises:
        UserError: if the file is missing, or a line is damaged, not an object, or not of the form; names it.
    """
    return [line.row(form) for line in lines_of(path)]


class GrowingFile:
    """A JSON-lines file that a run appends to; a kill may have cut off its last line.

    Args:
        path: path of the file, which may be missing.
        kind: the name of such a file in messages.
        row_start: the bytes that every row starts with.
        otherwise: as for Line.
    Attributes:
        end: the size of all complete lines in bytes, once `rows` has read them.
        note: a message for the user about the bytes after them; "" if there is nothing to tell.
    """

    def __init__(self, path: Path, kind: str, row_start: bytes, otherwise: str):
        self.path, self.kind, self.row_start, self.otherwise = path, kind, row_start, otherwise
        self.end, self.note = 0, ""

    def rows(self, form: dict) -> Iterator[tuple[Line, dict]]:
        """Yield each complete line and its row.

        Raises:
            UserError: if a line is damaged, or the incomplete last line cannot be the beginning of a row.
        """
        self.end, self.note = 0, ""
        for line in lines_of(self.path, self.otherwise) if self.path.exists() else ():
            if not line.content.endswith(b"\n"):
                return self._check_cut_off(line)
            yield line, line.row(form)
            self.end = line.start + len(line.content)

    def _check_cut_off(self, line: Line) -> None:
        begun = line.content.rstrip(b"\0")
        if not begun.startswith(self.row_start[: len(begun)]):
            raise line.error(f"this is not a line of {self.kind}")
        if len(begun) < len(line.content):
            self.note = (
                f"{self.path}: {len(line.content)} bytes after the last complete line are removed; they end "
                f"in {len(line.content) - len(begun)} NUL bytes, for example after a power cut"
            )

    def cut(self) -> None:
        """Remove the bytes after the complete lines."""
        if self.path.exists():
            os.truncate(self.path, self.end)


def misfit(value: object, form: Any, name: str = "") -> str:
    """Say what is wrong with a JSON value; return "" if it has the expected form.

    Args:
        form: a type (numbers must be finite); a tuple of alternative forms; [form], a list of such items;
            [form, ...], such a list that is not empty; {str: form}, an object with such values; or {name:
            form}, an object with these fields and maybe others ("name?" may be null or missing).
        name: the name of the value in messages.
    """
    if isinstance(form, dict):
        return _misfit_of_object(value, form, name)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _expected(value, list, name)
        if len(form) > 1 and not value:
            return f"{name or 'the list'} is empty"
        for place, item in enumerate(value):
            if misfit(item, form[0]):  # only a wrong item gets a name made: there may be a million items
                return misfit(item, form[0], f"{name} item {place}".strip())
        return ""
    if isinstance(form, tuple):
        for one in form:
            if _is_of_type(value, one) if type(one) is type else not misfit(value, one):
                return ""
        fits = False
    else:
        fits = _is_of_type(value, form)
    return "" if fits else _expected(value, form, name)


def _is_of_type(value: object, kind: type) -> bool:
    if type(value) is kind and kind in PLAIN:
        return True
    if isinstance(value, bool):  # in Python, True is an int
        return kind in (bool, object)
    if kind is float and isinstance(value, int):
        return abs(value) < FLOAT_LIMIT
    return isinstance(value, kind) and (not isinstance(value, float) or isfinite(value))


def _misfit_of_object(value: object, form: dict, name: str) -> str:
    if not isinstance(value, dict):
        return _expected(value, dict, name)
    if str in form:
        for key, item in value.items():
            if misfit(item, form[str]):
                return misfit(item, form[str], f'{name} "{key}"'.strip())
        return ""
    for field, inner in form.items():
        key = field.removesuffix("?")
        item = value.get(key)
        if (type(item) is inner and inner in PLAIN) or (item is None and key != field):
            continue
        if key not in value:
            has = ", ".join(f'"{other}"' for other in list(value)[:10]) or "nothing"
            return f'{name} needs "{key}", but has {has}'.strip()
        if misfit(item, inner):
            return misfit(item, inner, f'{name} "{key}"'.strip())
    return ""


def _expected(value: object, form: object, name: str) -> str:
    came = NAMES.get(type(value), type(value).__name__)
    return f"{name or 'the value'} is {came}, expected {_in_words(form)}"


def _in_words(form: Any) -> str:
    if isinstance(form, tuple):
        return " or ".join(dict.fromkeys(map(_in_words, form)))
    if isinstance(form, list):
        return "a list"
    return NAMES.get(dict if isinstance(form, dict) else form, getattr(form, "__name__", str(form)))


def parse(text: str) -> object:
    """Parse a JSON text; lone surrogates, which UTF-8 cannot encode, become U+FFFD.

    Raises:
        json.JSONDecodeError: if the text is not JSON.
        ValueError, RecursionError: if a number is too long or brackets are nested too deeply.
    """
    value = json.loads(text)
    return without_surrogates(value) if SURROGATE.search(text) else value


def without_surrogates(value):
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value
