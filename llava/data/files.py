"""Chooses the reader of a --data_path of records, or explains why no reader accepts it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava.data.json_reader import JsonReader
from llava.data.reader import Reader
from llava.data.record import shown
from llava.data.tables import INSTALL, folder_files, hub_files, is_hub_name, table_kind
from llava.errors import UserError
from llava.textfile import HEAD, SUFFIXES, kind_of

KINDS_EXPECTED = (
    "records come in JSON or JSONL files, in parquet or Arrow files or folders of them, or in tar shards "
    "('a/{00..63}.tar')"
)
YAML = (
    "a YAML file",
    "give the JSON files in it to --data_path, and their weights to --data_weights",
)
CSV = ("a table", "turn its rows into records, as docs/finetune_custom_data.md shows")
YAML_LINE = re.compile(r"(#|---|- \S|[\w.-]+:(\s|$))")


def reader_of(path: str | Path, image_folder: str | Path | None = None) -> Reader:
    """Return the reader of a --data_path. Raises UserError like check_data_file."""
    tables = check_data_file(path)
    if tables is None:
        return JsonReader(path, image_folder)
    from llava.data.table_reader import TableReader

    return TableReader(path, image_folder, tables)


def iter_records(path: str | Path) -> Iterator[Any]:
    """Iterate over a path's records. Raises UserError like Reader.scan and check_data_file."""
    return (record for record, _ in reader_of(path).scan())


def check_data_file(path: str | Path) -> list[Path] | None:
    """Check that a --data_path holds records: by a file's first bytes and name, in a folder, or on the hub.

    Returns:
        The path's parquet or Arrow files; None for JSON and JSONL.
    Raises:
        UserError: if the path does not exist, or is of another kind; the message says what it is, what is
            expected and what to do. Also if pyarrow is needed and not installed.
    """
    tables = _tables(path)
    if tables is not None and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path} is read with pyarrow, which is not installed; {INSTALL}.")
    return tables


def _tables(path: str | Path) -> list[Path] | None:
    if is_hub_name(path):
        return hub_files(str(path))
    if os.path.isdir(path):
        return folder_files(path)
    suffix = Path(path).suffix.lower()
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError) as error:
        found = SUFFIXES.get(suffix)
        if found is None:
            raise UserError(f"Cannot read the records in {path} ({error}); check --data_path.") from error
    else:
        if table_kind(head):
            return [Path(path)]
        found = _other_kind(head, suffix)
    if found is not None:
        raise UserError(f"{path} is {found[0]}, but {KINDS_EXPECTED}: {found[1]}, or check --data_path.")
    return None


def _other_kind(head: bytes, suffix: str) -> tuple[str, str] | None:
    """What a file with these first bytes is, and what to do with it; None if it may be JSON."""
    if kind := kind_of(head):
        return kind
    text = head.decode("utf-8-sig", "replace").lstrip()
    line = text.split("\n")[0].rstrip()
    if suffix in (".jsonl", ".ndjson") or not text:  # in JSONL a broken line is only one bad record
        return None
    if line == "{":
        return "one JSON object over several lines", "make it a list of records, or write one record per line"
    if text[0] in "[{":
        return None
    if suffix in (".yaml", ".yml") or YAML_LINE.match(line):
        return YAML
    if suffix in (".csv", ".tsv") or "," in line or "\t" in line:
        return CSV
    return SUFFIXES.get(suffix) or (f"not JSON: it starts with {shown(line)}", "make it JSON or JSONL")
