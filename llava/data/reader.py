"""The interface for reading files of records; each kind of file has its own subclass of Reader."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llava.data.forms import as_record
from llava.errors import UserError

ImageSource = Callable[[str], "Path | BinaryIO"]  # maps a record's image file to a path or an open file
Place = tuple[int, int]  # where an entry is in its files: two numbers whose meaning depends on the reader


class Reader(ABC):
    """Reads the entries of one --data_path: all in turn, or any one again by its place.

    A reader is pickled for the workers, so it holds no entries.

    Args:
        path: the --data_path as it was given.
        image_folder: the folder to which image paths are relative; None if no record has an image.
        files: the files that hold the records; None: only `path`.
    Attributes:
        state: the absolute path, size and modification time of each file, which show whether it changed.
        size: the total size of the files in bytes.
    """

    def __init__(
        self, path: str | Path, image_folder: str | Path | None = None, files: Sequence[Path] | None = None
    ):
        self.path, self.image_folder = path, image_folder
        self.files = list(files or [Path(path)])
        self.state = [_state(file, os.stat(file)) for file in self.files]
        self.size = sum(size for _, size, _ in self.state)

    def scan(self) -> Iterator[tuple[Any, Place]]:
        """Yield every entry as an unchecked record, with its place, in the order of the files.

        A BadRecord is yielded for an entry from which no record can be made.

        Raises:
            UserError: if the rest of a file cannot be read; the message names the file, and for JSON the line
                and column.
        """
        return ((as_record(row), place) for row, place in self.rows())

    def read(self, place: Place) -> Any:
        """The record at a place. Raises UserError if the file is no longer what was scanned."""
        return as_record(self.row(place))

    @abstractmethod
    def rows(self) -> Iterator[tuple[Any, Place]]:
        """Yield the entries as they are in the files, with their places; `scan` converts them to records."""

    @abstractmethod
    def row(self, place: Place) -> Any:
        """The entry at a place, as it is in the file; `read` converts it to a record."""

    @abstractmethod
    def done(self, place: Place) -> int:
        """The number of bytes, out of `size`, that a scan has read when it reaches the entry at a place."""

    def source_of(self, place: Place) -> ImageSource:
        """Return the function that finds the image files of the record at a place: in the image folder."""
        return self._below_the_folder

    def _below_the_folder(self, file: str) -> Path:
        return Path(self.image_folder or "") / file

    def _check_unchanged(self, file: int, stat: os.stat_result) -> None:
        """Raise UserError if the file of this number, whose present stat is given, has changed."""
        if _state(self.files[file], stat) != self.state[file]:
            raise self._changed(file)

    def _changed(self, file: int) -> UserError:
        return UserError(f"{self.files[file]} was changed while it was in use; start the command again.")


def _state(file: Path, stat: os.stat_result) -> tuple[str, int, int]:
    return os.path.abspath(file), stat.st_size, stat.st_mtime_ns
