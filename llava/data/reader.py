"""What reads files of records, whatever kind they are of: a subclass of Reader for each kind."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llava.data.forms import as_record
from llava.errors import UserError

ImageSource = Callable[[str], "Path | BinaryIO"]  # a record's image file to where its bytes are
Place = tuple[int, int]  # where an entry is within its file: two numbers that mean something to its reader


class Reader(ABC):
    """The entries of one --data_path: each record in turn, and any of them again by its place.

    It is pickled to workers and holds no entries.

    Args:
        path: as it was given.
        image_folder: what the names of image files are relative to; None if no record has an image.
        files: that hold the records; None: `path` alone.
    Attributes:
        state: of each file its absolute path, size and time of change, which tell what was read.
        size: of the files together, in bytes.
    """

    def __init__(
        self, path: str | Path, image_folder: str | Path | None = None, files: Sequence[Path] | None = None
    ):
        self.path, self.image_folder = path, image_folder
        self.files = list(files or [Path(path)])
        self.state = [_state(file, os.stat(file)) for file in self.files]
        self.size = sum(size for _, size, _ in self.state)

    def scan(self) -> Iterator[tuple[Any, Place]]:
        """Every entry as a record, unchecked, in the order of the files; a BadRecord for one that has none.

        Raises:
            UserError: if nothing after this entry can be read; names the file and where in it.
        """
        return ((as_record(row), place) for row, place in self.rows())

    def read(self, place: Place) -> Any:
        """The record at a place. Raises UserError if the file is no longer what was scanned."""
        return as_record(self.row(place))

    @abstractmethod
    def rows(self) -> Iterator[tuple[Any, Place]]:
        """What `scan` makes records of: entries as they are."""

    @abstractmethod
    def row(self, place: Place) -> Any:
        """What `read` makes a record of."""

    @abstractmethod
    def done(self, place: Place) -> int:
        """How much of `size` a scan has read when it comes to an entry."""

    def source_of(self, place: Place) -> ImageSource:
        """Where the image files of the record at a place are: here below the image folder."""
        return self._below_the_folder

    def _below_the_folder(self, file: str) -> Path:
        return Path(self.image_folder or "") / file

    def _check_unchanged(self, file: int, stat: os.stat_result) -> None:
        """Raises UserError unless the file of this number, with this stat now, is what it was."""
        if _state(self.files[file], stat) != self.state[file]:
            raise self._changed(file)

    def _changed(self, file: int) -> UserError:
        return UserError(f"{self.files[file]} was changed while it was in use; start again.")


def _state(file: Path, stat: os.stat_result) -> tuple[str, int, int]:
    return os.path.abspath(file), stat.st_size, stat.st_mtime_ns
