"""LLaVA's training records, and the checks of their form.

A record is {"id": ..., "image": file or [files], "system": words, "conversations": [{"from": "human" | "gpt",
"value": words}, ...]}. The first turn is the human's, the last the gpt's, and each image has one <image> in a
human turn. A text-only record has no "image". "system", or a first turn from "system", replaces the system
text of the template. `llava.data.forms` converts other formats to such records.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.text import replace_surrogates

SPEAKERS = ("human", "gpt")
SYSTEM = "system"
MAX_SHOWN = 100  # characters of a value that a message shows

_FILES = r"s?(_?(file|path|url|list)s?)?"
# Maps each key to other spellings of it that forms.py does not read (in lower case, with "_" for "-")
SPELLINGS = {
    "image": re.compile(rf"(image|img|picture|photo){_FILES}"),
    "conversations": re.compile(r"conversations?|messages?|dialog(ue)?s?|turns|chat"),
    SYSTEM: re.compile(r"system(_?(prompt|message|text))?"),
}
UNSEEN = re.compile(rf"(video|audio|sound|speech){_FILES}")  # keys of inputs that no model here accepts
UNSEEN_KIND = "unseen"


class BadRecord(UserError):
    """A record that cannot be trained on; the message names it, the problem and the remedy."""


class Unclear(BadRecord):
    """Replaces a row that cannot be read as one certain record; its message does not say where the row is."""

    def __init__(self, problem: str, id: object = None):
        super().__init__(problem)
        self.id = id


class Picture(str):
    """The name, for messages, of a picture that is stored in the file of records, not in a file of its own.

    Attributes:
        number: the picture's index among the record's pictures, from 0.
    """

    number: int

    @classmethod
    def numbered(cls, number: int, path: object = None) -> Picture:
        picture = cls(f"picture {number} ({path})" if path else f"picture {number}")
        picture.number = number
        return picture


def describe_record(path: str | Path, index: int, record: object) -> str:
    """Describe a record in messages by its file, its position in the file (from 0) and its id."""
    name = record.get("id", "none") if isinstance(record, dict) else getattr(record, "id", None) or "none"
    return f"{path}, record {index} (id {replace_surrogates(str(name))})"


def image_files(record: dict) -> list[str]:
    """The record's images in order, files and Pictures alike; empty for text only."""
    images = record.get("image") or []
    return [images] if isinstance(images, str) else list(images)


def outside_files(record: dict) -> list[str]:
    """The record's images that are files of their own."""
    return [file for file in image_files(record) if not isinstance(file, Picture)]


def turns_of(record: dict) -> list[dict]:
    """The human and gpt turns of a valid record, without a system turn."""
    turns = record["conversations"]
    return turns[1:] if turns[0]["from"] == SYSTEM else turns


def system_text(record: dict) -> str | None:
    """The system text that replaces the template's own; None if a valid record has none."""
    first = record["conversations"][0]
    text = first["value"] if first["from"] == SYSTEM else record.get(SYSTEM)
    return text if text and text.strip() else None


def validate_record(record: object, where: str) -> None:
    """Check a record's form without opening a file.

    Args:
        record: a reader's record, converted by llava.data.forms.as_record.
        where: describes the record, as `describe_record` does.
    Raises:
        BadRecord: if the form is wrong; the message names the record, the problem and the remedy.
    """

    def refuse(problem: str) -> NoReturn:
        raise BadRecord(f"{where}: {problem}")

    if isinstance(record, Unclear):
        refuse(str(record))
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, dict):
        refuse(f"it is a {type(record).__name__}; make it an object with 'id', 'image' and 'conversations'.")
    _validate_keys(record, refuse)
    images = record.get("image")
    are_files = isinstance(images, list) and all(isinstance(file, str) and file for file in images)
    if images is not None and not isinstance(images, str) and not are_files:
        refuse(f"'image' is {shown(images)}; make it a file name or a list of file names.")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        refuse("'conversations' is missing or empty; give it a question and an answer, or remove the record.")
    system = _validate_system(record, refuse)
    spoken = turns[1:] if _is_system_turn(turns[0]) else turns
    for index, turn in enumerate(spoken):
        if not _is_good_turn(turn, SPEAKERS[index % 2]):
            _refuse_turn(turn, index + len(turns) - len(spoken), SPEAKERS[index % 2], refuse)
    if len(spoken) % 2:
        refuse(
            f"the last of {len(spoken)} turns is from 'human'; add an answer from 'gpt', or remove the turn."
        )
    said = "\n".join([turn["value"] for turn in turns])
    if not f"{record.get('id')}{system}{''.join(image_files(record))}{said}".isascii():
        _validate_characters(record, system, refuse)
    num_marks = said.count(DEFAULT_IMAGE_TOKEN)
    num_images = len(image_files(record))
    if num_marks != num_images:
        refuse(
            f"{num_marks} {DEFAULT_IMAGE_TOKEN} in the conversation but {num_images} image file(s); "
            f"write {DEFAULT_IMAGE_TOKEN} once for each file in 'image'."
        )


Refuse = Callable[[str], NoReturn]


def _validate_keys(record: dict, refuse: Refuse) -> None:
    """Refuse keys that have a meaning but are not read; a key with an empty value may be there."""
    for key, value in record.items():
        meaning = _meaning(key) if value else None
        if meaning == UNSEEN_KIND:
            refuse(f"'{key}' is not read: the models here take only pictures and text; remove the record.")
        if meaning is not None and not record.get(meaning):
            refuse(f"'{key}' is not read; name it '{meaning}'.")


@lru_cache(maxsize=1024)  # the records of a set have the same few keys
def _meaning(key: str) -> str | None:
    """The proper name of a misspelt key, UNSEEN_KIND for one that matches UNSEEN, None for any other key."""
    plain = key.lower().replace("-", "_")
    if UNSEEN.fullmatch(plain):
        return UNSEEN_KIND
    return next(
        (name for name, spelling in SPELLINGS.items() if key != name and spelling.fullmatch(plain)), None
    )


def _is_system_turn(turn: object) -> bool:
    return isinstance(turn, dict) and turn.get("from") == SYSTEM


def _validate_system(record: dict, refuse: Refuse) -> str:
    """Check the system text, from the "system" key or the first turn, and return it; "" for none."""
    turns, text = record["conversations"], record.get(SYSTEM)
    if text is not None and not isinstance(text, str):
        refuse(f"'system' is {shown(text)}; make it a text, or leave it out.")
    if _is_system_turn(turns[0]):
        said = turns[0].get("value")
        if not isinstance(said, str):
            refuse(f"turn 0 (system) has the value {shown(said)}; give it a text, or remove the turn.")
        if len(turns) == 1:
            refuse("turn 0 is from 'system' and no turn follows; add a question and an answer.")
        if text and text != said:
            refuse("'system' and the first turn are two system texts; keep one of the two.")
        text = said
    if text and DEFAULT_IMAGE_TOKEN in text:
        refuse(f"the system text contains {DEFAULT_IMAGE_TOKEN}; images belong in human turns.")
    return text or ""


def _is_good_turn(turn: object, expected: str) -> bool:
    if type(turn) is not dict or turn.get("from") != expected:
        return False
    words = turn.get("value")
    if type(words) is not str or not words or words.isspace():
        return False
    return expected == "human" or DEFAULT_IMAGE_TOKEN not in words


def _refuse_turn(turn: object, index: int, expected: str, refuse: Refuse) -> NoReturn:
    if not isinstance(turn, dict) or turn.get("from") != expected:
        speaker = turn.get("from") if isinstance(turn, dict) else turn
        refuse(f"turn {index} is from {shown(speaker)}, expected {expected!r}; 'human' and 'gpt' alternate.")
    words = turn.get("value")
    if not isinstance(words, str) or not words.strip():
        problem = f"has the value {shown(words)}; give it a text, or remove the record."
        refuse(f"turn {index} ({expected}) {problem}")
    refuse(f"turn {index}, an answer, contains {DEFAULT_IMAGE_TOKEN}; images belong in human turns.")


def _validate_characters(record: dict, system: str, refuse: Refuse) -> None:
    """Refuse lone surrogates, halves of a UTF-16 pair: tokenizers and file systems do not accept them."""
    for name, text in _texts(record, system).items():
        try:
            text.encode()  # many times faster than a search
        except UnicodeEncodeError:
            half = re.search("[\ud800-\udfff]", text)
            assert half is not None
            refuse(
                f"{name} contains U+{ord(half[0]):04X}, a lone surrogate, which is half a character; "
                "write the whole character, or remove the record."
            )


def _texts(record: dict, system: str) -> dict[str, str]:
    """Maps names for messages to the texts of a record."""
    texts = {"'id'": str(record.get("id")), "'system'": system}
    texts |= {f"image {number}": file for number, file in enumerate(image_files(record))}
    return texts | {f"turn {number}": turn["value"] for number, turn in enumerate(record["conversations"])}


def shown(value: object) -> str:
    """The repr of a value, cut after MAX_SHOWN characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
