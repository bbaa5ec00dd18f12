"""Reading JSON lines that may be damaged: each problem is named by file, line and byte, with its remedy."""

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

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows editors put it ahead of UTF-8
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON may write one
FLOAT_LIMIT = 10**308  # numbers beyond have no float
ANEW = "fetch or make the file anew"

PLAIN = {str, int, dict, list}  # types all of whose values fit
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
        number: from 1.
        start: the bytes of the file ahead of it.
        content: its bytes, the line end included.
        is_last: whether the file ends with it.
        otherwise: what to do with the file if no line of it is worth keeping.
    """

    path: str | Path
    number: int
    start: int
    content: bytes
    is_last: bool
    otherwise: str = ANEW

    def error(self, problem: str, byte: int = 0) -> UserError:
        """What to raise for a problem that begins at a byte of this line, counted from 0."""
        file, good, before = shlex.quote(str(self.path)), shlex.quote(f"{self.path}.good"), self.number - 1
        remedies = []
        if before:
            command = f"head -n {before} {file} > {good} && mv {good} {file}"
            remedies.append(f"keep the {before} line(s) before this one: {command}")
        if before and not self.is_last:
            remedies.append(f"remove this line alone: sed -i {self.number}d {file}")
        remedies.append(self.otherwise)
        where = f"{self.path}, line {self.number}"
        place = f"byte {self.start + byte} of the file"
        return UserError(f"{where}: {problem} ({place}); {'; or '.join(remedies)}.")

    def row(self, form: dict | None = None) -> dict:
        """The line's object.

        Args:
            form: as misfit takes it.
        Raises:
            UserError: for a line that is damaged, no object, or not of the form.
        """
        if b"\0" in self.content:
            raise self.error("holds NUL bytes, as a power cut leaves them", self.content.index(b"\0"))
        try:
            text = self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason})", error.start) from None
        try:
            row = parse(text)
        except json.JSONDecodeError as error:
            byte = len(text[: error.pos].encode())
            raise self.error(f"not JSON ({error.msg}); one object a line is expected", byte) from None
        except (ValueError, RecursionError) as error:  # a number, or brackets, without end
            raise self.error(f"not JSON that can be read ({error})") from None
        if not isinstance(row, dict):
            raise self.error(f"expected a JSON object, got {type(row).__name__}")
        if form and (problem := misfit(row, form)):
            raise self.error(problem)
        return row


def lines_of(path: str | Path, otherwise: str = ANEW) -> Iterator[Line]:
    """The lines of a file, one after another, those that are blank left out.

    Raises:
        UserError: if the file cannot be opened, or is no text in UTF-8.
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
    """All rows of a JSON-lines file.

    Args:
        form: of each row, as misfit takes it.
    Raises:
        UserError: naming the file (missing), or the line that is damaged, no object or not of the form.
    """
    return [line.row(form) for line in lines_of(path)]


class GrowingFile:
    """A JSON-lines file that a run appends to; a kill may have cut off its last line.

    Args:
        path: may be missing.
        kind: what messages call such a file.
        row_start: the bytes that every row starts with.
        otherwise: as for Line.
    Attributes:
        end: bytes of the whole lines, once `rows` has read them.
        note: what to tell a user about the bytes behind them, "" for nothing.
    """

    def __init__(self, path: Path, kind: str, row_start: bytes, otherwise: str):
        self.path, self.kind, self.row_start, self.otherwise = path, kind, row_start, otherwise
        self.end, self.note = 0, ""

    def rows(self, form: dict) -> Iterator[tuple[Line, dict]]:
        """Whole lines and their rows.

        Raises:
            UserError: for a damaged line, or an end that is no row's beginning.
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
            raise line.error(f"this does not look like {self.kind}'s")
        if len(begun) < len(line.content):
            self.note = (
                f"{self.path}: {len(line.content)} bytes behind its last whole line are cut off; they end in "
                f"{len(line.content) - len(begun)} NUL bytes, as a power cut leaves them"
            )

    def cut(self) -> None:
        """Remove what stands behind the whole lines."""
        if self.path.exists():
            os.truncate(self.path, self.end)


def misfit(value: object, form: Any, name: str = "") -> str:
    """What is wrong with a JSON value, "" if it has the form.

    Args:
        form: a type (of numbers, the finite ones); a tuple of forms, any of which will do; [form], a list of
            that; [form, ...], one that is not empty; {str: form}, an object of that; or {name: form}, an
            object with these fields and maybe others, where a field "name?" may be null or missing.
        name: what messages call the value.
    """
    if isinstance(form, dict):
        return _misfit_of_object(value, form, name)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _expected(value, list, name)
        if len(form) > 1 and not value:
            return f"{name or 'the list'} is empty"
        for place, item in enumerate(value):
            if misfit(item, form[0]):  # names are made for what is wrong alone: there may be a million items
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
    if isinstance(value, bool):  # to Python, true is a number
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
            return f'{name} needs "{key}", has {has}'.strip()
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
    """What a JSON text holds, with U+FFFD for each lone surrogate, which no UTF-8 file takes.

    Raises:
        json.JSONDecodeError: for a text that is not JSON.
        ValueError, RecursionError: for numbers or brackets without end.
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
