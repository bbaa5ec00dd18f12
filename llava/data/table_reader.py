"""Reads records of parquet and Arrow files, one row group at a time; pictures are in the rows or in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from pyarrow import ipc, parquet

from llava.data.forms import IMAGES, content_of, image_values
from llava.data.reader import ImageSource, Place, Reader
from llava.data.record import Picture
from llava.data.tables import PARQUET, table_kind
from llava.errors import UserError
from llava.textfile import HEAD, kind_of

FILES_OPEN = 16  # in each process
GROUPS_HELD, GROUPS_WITH_PICTURES_HELD = 8, 2  # decoded row groups in each process
FILE_SHIFT = 32  # a place's first number is (file number << FILE_SHIFT) | row group
ROWS_AT_ONCE = 256  # rows that are converted to Python objects together
CONTENT = "bytes"  # the field with a picture's bytes, beside "path"


class TableReader(Reader):
    """Reads rows of parquet or Arrow files. A place is (file and row group, row); Arrow's groups are batches.

    A group is read when one of its rows is needed, and a few groups are cached. Arrow files are mapped, so
    that only the row is read. The text of a record is read without the bytes of its pictures.
    """

    def __init__(self, path: str | Path, image_folder: str | Path | None, files: Sequence[Path]):
        super().__init__(path, image_folder, files)
        self._num_groups = 1  # row groups of the file that is being scanned

    def __getstate__(self) -> dict:
        kept = ("path", "image_folder", "files", "state", "size", "_num_groups")
        return {name: vars(self)[name] for name in kept}

    def rows(self) -> Iterator[tuple[Any, Place]]:
        is_empty = True
        for number in range(len(self.files)):
            with self._named(number):
                self._num_groups = self._file(number).num_groups
            for group in range(self._num_groups):
                for row in self._rows_of_group(number, group):
                    is_empty = False
                    yield row
        if is_empty:
            raise UserError(f"{self.path} has no rows; it needs at least one record.")

    def _rows_of_group(self, number: int, group: int) -> Iterator[tuple[Any, Place]]:
        with self._named(number):
            texts = self._texts(number, group)
        for start in range(0, texts.num_rows, ROWS_AT_ONCE):
            with self._named(number):
                rows = texts.rows(start, ROWS_AT_ONCE)
            for row, values in enumerate(rows, start):
                yield values, (number << FILE_SHIFT | group, row)

    def done(self, place: Place) -> int:
        number, group = _file_and_group(place)
        sizes = [size for _, size, _ in self.state]
        return sum(sizes[:number]) + sizes[number] * (group + 1) // max(self._num_groups, 1)

    def row(self, place: Place) -> Any:
        number, group = _file_and_group(place)
        with self._named(number):
            return self._texts(number, group).rows(place[1], 1)[0]

    def source_of(self, place: Place) -> ImageSource:
        number, group = _file_and_group(place)
        values: list = []  # the row's pictures, read when the first is asked for

        def source(file: str) -> Path | BinaryIO:
            if not isinstance(file, Picture):
                return self._below_the_folder(file)
            if not values:
                with self._named(number):
                    row = self._whole(number, group).slice(place[1], 1).to_pylist()[0]
                values.extend(image_values(row))
            content = BytesIO(content_of(values[file.number]))
            name = (
                ""
                if len(self.files) == 1
                else f" of {self.files[number].name}, row {place[1]} of group {group}"
            )
            content.name = f"{file}{name}"
            return content

        return source

    @cached_property
    def _file(self) -> Callable[[int], _Parquet | _Arrow]:
        return lru_cache(FILES_OPEN)(self._open)

    @cached_property
    def _texts(self) -> Callable[[int, int], _Texts]:
        return lru_cache(GROUPS_HELD)(lambda number, group: self._file(number).texts(group))

    @cached_property
    def _whole(self) -> Callable[[int, int], pyarrow.Table]:
        return lru_cache(GROUPS_WITH_PICTURES_HELD)(lambda number, group: self._file(number).whole(group))

    def _open(self, number: int) -> _Parquet | _Arrow:
        file = self.files[number]
        self._check_unchanged(number, file.stat())
        with open(file, "rb") as opened:
            head = opened.read(HEAD)
        kind = table_kind(head)
        if kind is None:
            found = kind_of(head) or ("neither a parquet nor an Arrow file", "fetch it again")
            raise UserError(
                f"{file} is {found[0]}, but a file of records is expected: {found[1]}, or leave it out."
            )
        return (_Parquet if kind == PARQUET else _Arrow)(file)

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Turn pyarrow's error for a broken file into a UserError that names the file."""
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            problem = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(
                f"{self.files[number]} cannot be read ({problem}); it is damaged or cut short: fetch it "
                "again, or leave it out."
            ) from error


def _file_and_group(place: Place) -> tuple[int, int]:
    return place[0] >> FILE_SHIFT, place[0] & ((1 << FILE_SHIFT) - 1)


class _Texts:
    """Rows in which the bytes of pictures are empty.

    Args:
        known: maps names to columns that are not in the table, since their values were made when it was read.
    """

    def __init__(self, table: pyarrow.Table, known: dict[str, list] | None = None):
        self.table, self.known = table, known or {}
        self.num_rows = table.num_rows

    def rows(self, start: int, length: int) -> list[dict]:
        part = self.table.slice(start, length)
        columns = {name: self._values(name, part.column(name)) for name in part.column_names}
        columns |= {name: values[start : start + length] for name, values in self.known.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _values(self, name: str, column: pyarrow.ChunkedArray) -> list:
        return list(map(_light, column)) if name in IMAGES else column.to_pylist()


def _marked(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_marked, value))
    return value if value is None else {**value, CONTENT: b""}


def _light(value: pyarrow.Scalar) -> Any:
    """Convert a value to Python; binary values become b"" and are not read."""
    if not value.is_valid:
        return None
    if isinstance(value, pyarrow.ListScalar):
        return list(map(_light, value.values))
    if isinstance(value, pyarrow.StructScalar):
        return {name: _light(each) for name, each in value.items()}
    return b"" if isinstance(value, pyarrow.BinaryScalar) and not _is_text(value) else value.as_py()


def _is_text(value: pyarrow.Scalar) -> bool:
    return pyarrow.types.is_string(value.type) or pyarrow.types.is_large_string(value.type)


class _Parquet:
    def __init__(self, path: Path):
        self.file = parquet.ParquetFile(path, memory_map=True)
        self.num_groups = self.file.num_row_groups

    def whole(self, group: int) -> pyarrow.Table:
        # without pyarrow's threads, since the fork of a data worker does not copy them
        return self.file.read_row_group(group, use_threads=False)

    def texts(self, group: int) -> _Texts:
        metadata = self.file.metadata.row_group(group)
        leaves = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
        content = {
            path: leaf
            for path, leaf in leaves.items()
            if path.split(".")[0] in IMAGES
            and path.endswith(f".{CONTENT}")
            and f"{path.removesuffix(CONTENT)}path" in leaves
        }
        kept = [path for path in leaves if path not in content]
        table = self.file.read_row_group(group, columns=kept, use_threads=False)
        left_out = {path.split(".")[0]: leaf for path, leaf in content.items()}
        known = {}
        for name, leaf in left_out.items():
            column = table.column(name)
            if _num_pictures(column) == _num_values(leaf):
                known[name] = list(map(_marked, column.to_pylist()))
            else:  # some pictures are files of their own, and only the bytes show which
                whole = self.file.read_row_group(group, columns=[name], use_threads=False)
                known[name] = list(map(_light, whole.column(name)))
        return _Texts(table.drop_columns(list(known)), known)


def _num_values(leaf: Any) -> int | None:
    """The number of values in a column that are not null; None if the file does not record it."""
    statistics = leaf.statistics
    if statistics is None or not statistics.has_null_count:
        return None
    return leaf.num_values - statistics.null_count


def _num_pictures(column: pyarrow.ChunkedArray) -> int:
    if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        column = pyarrow.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return len(column) - column.null_count


class _Arrow:
    """An Arrow file. It is memory-mapped, so that batches are read in place."""

    def __init__(self, path: Path):
        source = pyarrow.memory_map(str(path))
        if source.read(6) == b"ARROW1":
            file = ipc.open_file(source)
            self.num_groups, self.batch = file.num_record_batches, file.get_batch
        else:
            source.seek(0)
            batches = list(ipc.open_stream(source))
            self.num_groups, self.batch = len(batches), batches.__getitem__

    def whole(self, group: int) -> pyarrow.Table:
        return pyarrow.Table.from_batches([self.batch(group)])

    def texts(self, group: int) -> _Texts:
        return _Texts(self.whole(group))
