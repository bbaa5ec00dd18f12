"""What reads a file of records, whatever its form: a subclass of Reader for each form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

ImageSource = Callable[[str], "Path | BinaryIO"]  # a record's image file to where its bytes are
Place = tuple[int, int]  # where an entry is within its file: two numbers that mean something to its reader


class Reader(ABC):
    """The entries of one file: each record in turn, and any of them again by its place.

    It is pickled to workers and holds no entries.

    Args:
        path: of the file.
        image_folder: what the names of image files are relative to; None if no record has an image.
    Attributes:
        size: the file's, in units of `unit`.
        keeps_pictures: whether pictures are within the file itself, so that there are no image files to look
            for.
    """

    unit = "B"
    keeps_pictures = False

    def __init__(self, path: str | Path, image_folder: str | Path | None):
        self.path, self.image_folder = path, image_folder
        self.size = Path(path).stat().st_size

    @abstractmethod
    def scan(self) -> Iterator[tuple[Any, Place]]:
        """Every entry as it is, unchecked, in the order of the file; a BadRecord for one that has no record.

        Raises:
            UserError: if nothing after this entry can be read; names the file and where in it.
        """

    @abstractmethod
    def done(self, place: Place) -> int:
        """How much of `size` a scan has read when it comes to an entry."""

    @abstractmethod
    def read(self, place: Place) -> Any:
        """The record at a place. Raises UserError if the file is no longer what was scanned."""

    def source_of(self, place: Place) -> ImageSource:
        """Where the image files of the record at a place are: here below the image folder."""
        return self._below_the_folder

    def _below_the_folder(self, file: str) -> Path:
        return Path(self.image_folder or "") / file
