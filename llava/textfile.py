"""Reads text files: UTF-8 with or without a byte order mark. Error messages name other kinds of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import TextIO

from llava.errors import UserError
from llava.text import replace_surrogates

LONGEST_NAME = 200  # characters of a file's name that a message shows
HEAD = 512  # first bytes of a file, which show its kind
AS_UTF_8 = "save it as UTF-8, for example with iconv"
# Maps first bytes to a file's kind and how to get text from it. UTF-32's mark starts with UTF-16's.
KINDS = {
    b"\xff\xfe\0\0": ("text in UTF-32", AS_UTF_8),
    b"\0\0\xfe\xff": ("text in UTF-32", AS_UTF_8),
    b"\xff\xfe": ("text in UTF-16", AS_UTF_8),
    b"\xfe\xff": ("text in UTF-16", AS_UTF_8),
    b"\x1f\x8b": ("compressed with gzip", "unpack it with gunzip"),
    b"BZh": ("compressed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ\0": ("compressed with xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it with unzstd"),
    b"PK\x03\x04": ("a zip archive", "unpack it with unzip"),
    b"PK\x05\x06": ("an empty zip archive", "fetch the file again"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it with 7z x"),
    b"PAR1": ("a parquet file", "write its rows as JSON, for example with pandas"),
    b"ARROW1": ("an Arrow file", "write its rows as JSON, for example with pyarrow"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself with git lfs pull"),
}
# Maps a suffix to the kind of a file whose content does not show it, for example because it is missing
SUFFIXES = {
    **dict.fromkeys((".gz", ".tgz"), KINDS[b"\x1f\x8b"]),
    ".bz2": KINDS[b"BZh"],
    ".xz": KINDS[b"\xfd7zXZ\0"],
    ".zst": KINDS[b"\x28\xb5\x2f\xfd"],
    ".zip": KINDS[b"PK\x03\x04"],
    ".7z": KINDS[b"7z\xbc\xaf\x27\x1c"],
}
TAR = (
    "a tar archive",
    "unpack it with tar -xf, or, if it is a shard, rename it so that its name ends in .tar",
)
TAR_MARK = slice(257, 262)  # where a tar archive has "ustar"


def kind_of(head: bytes) -> tuple[str, str] | None:
    """A file's kind by its first HEAD bytes, and how to get text from it; None if it may be UTF-8."""
    if head[TAR_MARK] == b"ustar":
        return TAR
    for mark, kind in KINDS.items():
        if head.startswith(mark):
            return kind
    # without a byte order mark, each ASCII character has a zero beside it
    if len(head) > 3 and any(head[0:64:2]) != any(head[1:64:2]):
        return "text in UTF-16", AS_UTF_8
    return None


@contextmanager
def open_text(path: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a file to read it as UTF-8; a byte order mark at its start is not part of the text.

    Args:
        newline: as open() takes it.
    Raises:
        UserError: if the file cannot be opened, is of another kind or turns out not to be UTF-8; names it.
    """
    with open_bytes(path) as raw:
        try:
            with TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
                yield file
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text in UTF-8 ({error}); {AS_UTF_8}.") from error


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BufferedReader]:
    """Open a text file to read its bytes.

    Raises UserError, which names the file, if it cannot be opened or is of another kind.
    """
    with _opened(path) as raw:
        if kind := kind_of(raw.peek(HEAD)[:HEAD]):
            raise UserError(f"{path} is {kind[0]}; expected text in UTF-8: {kind[1]}.")
        yield raw


def _opened(path: str | Path) -> BufferedReader:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; a file is expected.")
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be opened ({error}).") from error


def read_text(path: str | Path) -> str:
    """Return the text of a whole file. Raises UserError as open_text does."""
    with open_text(path) as file:
        return file.read()


def absence(path: str | Path) -> str:
    """Why there is no file at `path`: it does not exist, or is a folder."""
    return "is a folder" if os.path.isdir(path) else "does not exist"


def shown_name(name: object) -> str:
    """A file's name as a message can print it."""
    text = replace_surrogates(str(name)).replace("\0", "\ufffd")
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."
