"""The index of one --data_path: the place and the counts of each good record. Made once and stored."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from llava.data.files import reader_of
from llava.data.kept import ArrayCache, KeptArray
from llava.data.reader import Place, Reader
from llava.data.record import BadRecord, describe_record, image_files, outside_files
from llava.data.sample import check_image_files, check_record
from llava.progress import progress_bar

FORMAT = 2  # is increased when the same file would get another index
CHECKS = ("start", "lazy")  # when image files are looked for
SOURCE, FIRST, SECOND, WORDS, IMAGES = range(5)  # columns of an index; FIRST and SECOND are the place
NUM_THREADS = 16  # threads that look for image files or open them, which is slow on a network file system
FILES_AT_ONCE = 1000
SPOT_CHECKS = 500  # records whose image files are checked when a stored index is opened
TICK = 0.05  # seconds within which two changes of a file may get the same modification time


class RecordIndex:
    """The good records of a file, in the order of the file.

    Attributes:
        reader: reads the records.
        rows: int64[N, 5], with the columns above: the entry's number in the file, its place (two columns),
            the number of words in its turns, and the number of its images.
        problems: a message for each bad record, in the order of the file.
        key: identifies the index.
    """

    def __init__(self, reader: Reader, kept: KeptArray):
        self.reader, self._kept = reader, kept

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def key(self) -> str:
        return self._kept.path.stem

    @property
    def rows(self) -> np.ndarray:
        return self._kept.array

    @property
    def problems(self) -> list[str]:
        return [message for _, message in self._kept.notes["problems"]]

    def read(self, row: int) -> tuple[Any, str, Place]:
        """Return a record, its description for messages, and its place."""
        source, *place = self.rows[row, : SECOND + 1].tolist()
        record = self.reader.read(tuple(place))
        return record, describe_record(self.reader.path, source, record), tuple(place)


def open_index(
    path: str | Path,
    template: str,
    image_folder: str | Path | None,
    cache: ArrayCache,
    check_images: str = "start",
) -> RecordIndex:
    """Return the index of a file: the stored one if the file is unchanged, else a new one.

    Args:
        template: a name in `conv_templates`, which decides which records are good.
        check_images: "start": a record is bad if an image file of it is missing; "lazy": this is not checked.
    Raises:
        UserError: for an error in the file as a whole.
    """
    reader = reader_of(path, image_folder)
    folder = None if image_folder is None else [str(image_folder), os.path.abspath(image_folder)]
    key = [
        FORMAT,
        str(path),
        reader.state,
        template,
        folder,
        check_images,
    ]
    seeks = check_images == "start" and image_folder is not None
    last_change = max(nanoseconds for _, _, nanoseconds in reader.state) / 1e9

    def make() -> tuple[np.ndarray, dict]:
        time.sleep(max(0.0, min(TICK, TICK - (time.time() - last_change))))
        scan = _Scan(reader, template)
        return scan.without_missing_files() if seeks else scan.result()

    kept = cache.get(key, f"the index of {path}", make, lambda kept: not seeks or _is_true(kept, reader))
    return RecordIndex(reader, kept)


class _Scan:
    """One pass over a file."""

    def __init__(self, reader: Reader, template: str):
        self.reader, self.template = reader, template
        self.columns = array("q")
        self.files: set[str] = set()  # image files of good records
        self.problems: list[tuple[int, str]] = []
        with progress_bar(f"reading {reader.path}", reader.size, "B", disable=False, unit_scale=True) as bar:
            for source, (record, place) in enumerate(reader.scan()):
                self._add(source, record, place)
                if source % 1000 == 0:
                    bar.update(reader.done(place) - bar.n)

    def _add(self, source: int, record: Any, place: Place) -> None:
        try:
            check_record(record, "", self.template)
            files = outside_files(record)
            if files and self.reader.image_folder is None:
                check_image_files(record, "", None)
        except BadRecord:
            self._refuse(source, record)
            return
        said = "\n".join([turn["value"] for turn in record["conversations"]])
        self.columns.extend((source, *place, len(said.split()), len(image_files(record))))
        self.files.update(files)

    def _refuse(self, source: int, record: Any) -> bool:
        """Store the problem of a record, with its description, which good records do not need.

        Returns False if there is no problem.
        """
        where = describe_record(self.reader.path, source, record)
        try:
            check_record(record, where, self.template)
            check_image_files(record, where, self.reader.image_folder)
        except BadRecord as error:
            self.problems.append((source, str(error)))
            return True
        return False

    def result(self) -> tuple[np.ndarray, dict]:
        """The index's rows and notes."""
        rows = np.frombuffer(self.columns, dtype=np.int64).reshape(-1, IMAGES + 1)
        return rows, {"problems": self.problems, "missing": [], "has_files": bool(self.files)}

    def without_missing_files(self) -> tuple[np.ndarray, dict]:
        """The same without records whose image files are missing; looks for each file once."""
        rows, notes = self.result()
        missing = set(_missing(self.reader.image_folder, self.files, disable=False))
        if not missing:
            return rows, notes
        is_good = np.ones(len(rows), dtype=bool)
        for row in np.flatnonzero(rows[:, IMAGES]).tolist():
            source, *place = rows[row, : SECOND + 1].tolist()
            record = self.reader.read(tuple(place))
            if not missing.isdisjoint(outside_files(record)):
                is_good[row] = not self._refuse(source, record)
        return rows[is_good], {**notes, "problems": sorted(self.problems), "missing": sorted(missing)}


def _missing(folder: str | Path | None, files: Iterable[str], **options) -> list[str]:
    """The files that are missing from a folder. `options` are passed to the progress bar."""
    assert folder is not None
    base = os.fspath(folder)

    def look(names: list[str]) -> list[str]:
        # first as text, many times faster; then missing files as Path, which drops a "/" at a name's end
        absent = [name for name in names if not os.path.isfile(os.path.join(base, name))]
        return [name for name in absent if not os.path.isfile(Path(base) / name)]

    names, missing = list(files), []
    parts = [names[start : start + FILES_AT_ONCE] for start in range(0, len(names), FILES_AT_ONCE)]
    with (
        progress_bar("looking for image files", len(names), "file", **options) as bar,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        for part, absent in zip(parts, pool.map(look, parts), strict=True):
            missing += absent
            bar.update(len(part))
    return missing


def _is_true(kept: KeptArray, reader: Reader) -> bool:
    """Whether missing image files are still missing, and those of some records still exist."""
    if not kept.notes["has_files"]:  # no good record has an image file of its own
        return True
    with_images = np.flatnonzero(kept.array[:, IMAGES])
    chosen = kept.array[with_images[:: max(1, len(with_images) // SPOT_CHECKS)]]
    places = map(tuple, chosen[:, FIRST : SECOND + 1].tolist())
    files = {file for place in places for file in outside_files(reader.read(place))}
    missing = kept.notes["missing"]
    return set(_missing(reader.image_folder, files.union(missing))) == set(missing)
