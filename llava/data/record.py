"""LLaVA's training records: reading them, and saying what is wrong with one.

A record is {"id": ..., "image": file or [files], "conversations": [{"from": "human" | "gpt", "value":
words}, ...]}; the human speaks first, the gpt last, and each image has its <image> in a human turn. Text
only: no "image".
"""

from __future__ import annotations

import json
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN

SPEAKERS = ("human", "gpt")


class BadRecord(ValueError):
    """A record that cannot be trained on; the message names it, the problem and the remedy."""


def load_records(path: str | Path) -> list[dict]:
    """Read a JSON list, or JSONL (one record a line).

    Raises:
        ValueError: if the file is missing, empty or no JSON; names the file and the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the records in {path} ({error}); check --data_path.") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; it needs a JSON list of records, or one record a line.")
    if text.lstrip().startswith("["):
        records = _parse(text, path)
        if not records:
            raise ValueError(f"{path} holds an empty list; it needs at least one record.")
        return records
    lines = enumerate(text.split("\n"), start=1)
    return [_parse(line, path, number) for number, line in lines if line.strip()]


def _parse(text: str, path: str | Path, first_line: int = 1) -> list[dict] | dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {first_line + error.lineno - 1}, column {error.colno}: {error.msg}; correct it, "
            "or fetch the file again if it was cut short."
        ) from error


def describe_record(path: str | Path, index: int, record: object) -> str:
    """Where a record is, for messages: file, position in the file from 0, and id."""
    name = record.get("id", "none") if isinstance(record, dict) else "none"
    return f"{path}, record {index} (id {name})"


def image_files(record: dict) -> list[str]:
    """The record's image files, in order; empty for text only."""
    images = record.get("image") or []
    return [images] if isinstance(images, str) else list(images)


def validate_record(record: dict, where: str) -> None:
    """Check a record's form, opening no file.

    Args:
        where: names the record, as `describe_record` does.
    Raises:
        BadRecord: naming the record, the problem and the remedy.
    """

    def refuse(problem: str) -> None:
        raise BadRecord(f"{where}: {problem}")

    if not isinstance(record, dict):
        refuse(f"it is a {type(record).__name__}; make it an object with 'id', 'image' and 'conversations'.")
    images = record.get("image")
    are_files = isinstance(images, list) and all(isinstance(file, str) for file in images)
    if images is not None and not isinstance(images, str) and not are_files:
        refuse(f"'image' is {images!r}; make it a file name or a list of file names.")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        refuse("'conversations' is missing or empty; give it a question and an answer, or remove the record.")
    for index, turn in enumerate(turns):
        _validate_turn(turn, index, refuse)
    if len(turns) % 2:
        refuse(f"the last of {len(turns)} turns is the human's; add the gpt's answer, or remove the turn.")
    num_marks = sum(turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in turns)
    num_images = len(image_files(record))
    if num_marks != num_images:
        refuse(
            f"{num_marks} {DEFAULT_IMAGE_TOKEN} in the conversation but {num_images} image file(s); "
            f"write {DEFAULT_IMAGE_TOKEN} once for each file in 'image'."
        )


def _validate_turn(turn: object, index: int, refuse) -> None:
    expected = SPEAKERS[index % 2]
    if not isinstance(turn, dict) or turn.get("from") != expected:
        speaker = turn.get("from") if isinstance(turn, dict) else turn
        refuse(f"turn {index} is from {speaker!r}, expected {expected!r}; turns alternate human, gpt.")
    words = turn.get("value")
    if not isinstance(words, str) or not words.strip():
        refuse(f"turn {index} ({expected}) has the value {words!r}; give it words, or remove the record.")
    if expected == "gpt" and DEFAULT_IMAGE_TOKEN in words:
        refuse(f"turn {index}, an answer, contains {DEFAULT_IMAGE_TOKEN}; images belong in human turns.")
