"""Finds the parquet or Arrow files of a --data_path: a file, a folder of them, or a data set of the hub."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

from llava.errors import UserError

STATE = "state.json"  # in a folder that save_to_disk of the datasets library wrote
SPLITS = "dataset_dict.json"  # in a folder that holds one such folder for each split
PARQUET, ARROW = ".parquet", ".arrow"
# Maps a file's first bytes to its kind; the last entry is an Arrow stream, which datasets writes
MARKS = {b"PAR1": PARQUET, b"ARROW1": ARROW, b"\xff\xff\xff\xff": ARROW}
SHARD = re.compile(r"(.*?)[-_.]?\d+(-of-\d+)?(-\w+)?")  # group 1: a shard's name without its number
TRAIN = "train"
HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[^:/]*)(:(?P<split>[^:/]+))?)?")
FILE_SUFFIXES = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".tar",
    ".yaml",
    ".yml",
    ".csv",
    ".tsv",
    ".txt",
    PARQUET,
    ARROW,
)
INSTALL = "run pip install -e '.[train]'"


def table_kind(head: bytes) -> str | None:
    """Return PARQUET or ARROW for a file's first bytes; None for any other file."""
    return next((kind for mark, kind in MARKS.items() if head.startswith(mark)), None)


def is_hub_name(path: str | Path) -> bool:
    """Whether `path` is OWNER/NAME, OWNER/NAME:CONFIG or OWNER/NAME:CONFIG:SPLIT, and no file or folder."""
    match = HUB_NAME.fullmatch(str(path))
    return match is not None and not match["name"].endswith(FILE_SUFFIXES) and not os.path.exists(path)


def folder_files(folder: str | Path) -> list[Path]:
    """The parquet or Arrow files of a folder, in order; if names show several splits, only those of `train`.

    Raises:
        UserError: if there are none, or several splits or sets and it is not clear which is meant; the
            message says what to name instead.
    """
    folder = Path(folder)
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        raise UserError(f"{folder} has several splits; give the folder of one, {_choices(folder, splits)}.")
    if (folder / STATE).is_file():
        return _saved_files(folder)
    data = folder / "data"  # where a data set of the hub has its files
    found = _tables(folder) or _tables(data)
    if not found:
        below = sorted({path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/*{PARQUET}")})
        if below:
            raise UserError(
                f"{folder} has folders of parquet files; give one of them, {_choices(folder, below)}."
            )
        raise UserError(
            f"{folder} is a folder without parquet or Arrow files; give the JSON files in it, or check "
            "--data_path."
        )
    sets: dict[str, list[Path]] = {}
    for file in found:
        match = SHARD.fullmatch(file.stem)
        sets.setdefault(f"{match[1] if match else file.stem}{file.suffix}", []).append(file)
    of_train = [files for name, files in sets.items() if Path(name).stem == TRAIN]
    if len(sets) > 1 and len(of_train) != 1:
        raise UserError(
            f"{folder} has several sets of files, {', '.join(sorted(sets))}; give the files of one set, or a "
            "folder that contains only these."
        )
    return of_train[0] if len(sets) > 1 else found


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in (PARQUET, ARROW) and path.is_file())


def _choices(folder: Path, names: list[str]) -> str:
    return " or ".join(str(folder / name) for name in names[:3])


def _saved_files(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = [folder / each["filename"] for each in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / STATE} cannot be read ({error!r}); save the data set again.") from error
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(f"{folder} lacks {missing[0].name if missing else 'its files'}; save it again.")
    return files


@cache  # both the checks and the readers call it
def hub_files(path: str) -> list[Path]:
    """The Arrow files of a data set of the hub, which the datasets library downloads or takes from its cache.

    Raises:
        UserError: if there is no such data set, configuration or split, the hub cannot be reached, or the
            datasets library is not installed.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(
            f"--data_path {path}: there is no such file, and the package datasets, which reads from the hub, "
            f"is not installed; {INSTALL}."
        ) from error
    match = HUB_NAME.fullmatch(path)
    assert match is not None
    try:
        data = load_dataset(match["name"], match["config"] or None, split=match["split"] or TRAIN)
    except (DatasetsError, OSError, ValueError, LookupError) as error:
        problem = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"--data_path {path}: there is no such file, and it cannot be read from the hub ({problem}); "
            "give a path, or OWNER/NAME:CONFIG:SPLIT for a data set of the hub."
        ) from error
    return [Path(file["filename"]) for file in data.cache_files]
