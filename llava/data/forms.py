"""Converts rows in the formats of other programs to LLaVA's records; no other module knows these formats.

- `messages` and `images`, as TRL, ms-swift and LLaMA-Factory read them: each turn is {"role", "content"},
  where the content is a text or a list of parts. The same turns may be named `conversations`.
- `texts` and `images`, as the_cauldron and FineVision have them: {"user", "assistant"} holds two turns.
- LLaVA's own format with the pictures inside the row.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.record import SPEAKERS, SYSTEM, BadRecord, Picture, Unclear, shown

SPEAKER_OF_ROLE = {"user": SPEAKERS[0], "assistant": SPEAKERS[1]}
LLAVA_SPEAKERS = (*SPEAKERS, SYSTEM)
TURNS = ("conversations", "messages", "texts")
IMAGES = ("image", "images")
FILE_KEYS = ("path", "url", "image", "image_url")  # keys of a picture that may name its file
# Keys of these formats, beside the turns and in a turn, that are not supported here
UNREAD_BESIDE = {"messages": ("tools", "objects")}
UNREAD_IN_TURN = (
    *("tool_calls", "tool_call_id", "function_call", "reasoning_content", "thinking", "weight"),
    *("image", "images", "video", "videos", "audio", "audios"),
)
SAYS_NOTHING = (None, "", [], {}, 1)  # a "weight" of 1 has no effect


def as_record(row: Any) -> Any:
    """Convert a row of any format to a LLaVA record, whose form is not checked yet.

    A row in LLaVA's format, and a value that is no row, is returned unchanged. A picture within the row
    becomes a `Picture`; its bytes may be empty if they are not needed.

    Returns:
        The record, or an Unclear if the meaning of the row is not certain.
    """
    if not isinstance(row, dict) or _is_llavas(row):
        return row
    try:
        return _converted(row)
    except BadRecord as error:
        return Unclear(str(error), row.get("id"))


def image_values(row: dict) -> list:
    """The row's pictures as they are stored, in order: names of files, or objects with "bytes" and "path".

    Raises:
        BadRecord: if the row has two lists of pictures that differ.
    """
    lists = {key: as_list(row[key]) for key in IMAGES if _is_there(row.get(key))}
    own = [
        value
        for turn in as_list(row.get("messages") or row.get("conversations"))
        for part in _parts(turn)
        if _is_picture(part) and _is_there(value := _file_of(part))
    ]
    if own:
        lists["the parts of the turns"] = own
    (first, found), *others = lists.items() if lists else [("", [])]
    for other, values in others:
        if values != found:
            raise BadRecord(f"'{first}' and {shown(other)} name different pictures; keep one of the two.")
    return found


def content_of(value: Any) -> bytes:
    """The bytes of a value from `image_values` that as_record converts to a Picture."""
    if _is_content(value):
        return value
    return content_of(value["bytes"] if _is_content(value.get("bytes")) else _file_of(value))


def as_list(value: Any) -> list:
    """Return a list unchanged, an empty list for None, and a list of one for anything else."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_llavas(row: dict) -> bool:
    turns, image = row.get("conversations"), row.get("image")
    if type(turns) is not list or row.get("images") or row.get("messages") or _is_texts(row.get("texts")):
        return False
    for turn in turns:  # a loop takes half as long as all()
        if (
            type(turn) is not dict
            or len(turn) != 2
            or turn.get("from") not in LLAVA_SPEAKERS
            or type(turn.get("value")) is not str
        ):
            return False
    return image is None or type(image) is str or (type(image) is list and set(map(type, image)) <= {str})


def _converted(row: dict) -> dict:
    given = [key for key in TURNS if row.get(key) and (key != "texts" or _is_texts(row[key]))]
    if len(given) > 1:
        raise BadRecord(f"'{given[0]}' and '{given[1]}' are two conversations; keep one of the two.")
    for key in UNREAD_BESIDE.get("".join(given), ()):
        if row.get(key):
            raise BadRecord(
                f"'{key}' is not read: the models here do not use tools or mark objects; leave it out."
            )
    record = {key: value for key, value in row.items() if key not in (*given, *IMAGES)}
    images = [_image(value, number) for number, value in enumerate(image_values(row))]
    if images:
        record["image"] = row["image"] if isinstance(row.get("image"), str) else images
    if given:
        record["conversations"] = _turns(given[0], row[given[0]], len(images))
    return record


def _turns(key: str, turns: Any, num_images: int) -> Any:
    if key == "texts":
        return _turns_of_texts(turns, num_images)
    if not isinstance(turns, list):
        return turns
    marks = Counter()
    return _plain_turns(turns) or [_turn(turn, number, marks) for number, turn in enumerate(turns)]


def _plain_turns(turns: list) -> list[dict]:
    """Convert turns that are only {"role", "content"} of texts, in less time; an empty list if one is not."""
    converted = []
    for turn in turns:
        if (
            type(turn) is not dict
            or len(turn) != 2
            or type(role := turn.get("role")) is not str
            or type(words := turn.get("content")) is not str
        ):
            return []
        converted.append({"from": SPEAKER_OF_ROLE.get(role, role), "value": words})
    return converted


def _image(value: Any, number: int) -> Any:
    """The name of a picture; a value that is no picture is returned unchanged, and is refused later."""
    if _is_content(value):
        return Picture.numbered(number)
    if not isinstance(value, dict):
        return value
    if _is_content(value.get("bytes")):
        return Picture.numbered(number, value.get("path"))
    file = _file_of(value)
    if isinstance(file, dict):  # {"image_url": {"url": ...}}, or a part with a picture in it
        return _image(file, number)
    if _is_content(file):
        return Picture.numbered(number)
    if isinstance(file, str) and file.startswith(("http://", "https://", "data:")):
        raise BadRecord(
            f"picture {number} is a web address, {shown(file)}; fetch it, and give the file's name."
        )
    return file if isinstance(file, str) and not value.get("bytes") else value


def _file_of(value: Any) -> Any:
    """The value with which an object names or holds its picture; None if there is none."""
    if not isinstance(value, dict):
        return None
    if _is_content(value.get("bytes")):
        return value
    found = [value[key] for key in FILE_KEYS if _is_there(value.get(key))]
    if any(file != found[0] for file in found[1:]):
        raise BadRecord(f"{shown(value)} names two pictures; keep one of them.")
    return found[0] if found else None


def _turn(turn: Any, number: int, marks: Counter) -> Any:
    """Convert a turn to LLaVA's format; a value that is no turn is returned unchanged, and is refused later.

    `marks` counts the pictures so far.
    """
    if not isinstance(turn, dict):
        return turn
    for key in UNREAD_IN_TURN:
        if turn.get(key) not in SAYS_NOTHING:
            raise BadRecord(f"turn {number}: '{key}' is not read; leave the turn out, or the record.")
    role = _one(turn, ("from", "role"), number)
    said = [_part(part, number, marks) for part in _parts(turn)]
    words = "".join(said) if said else _one(turn, ("value", "content"), number)
    return {"from": SPEAKER_OF_ROLE.get(role, role) if isinstance(role, str) else role, "value": words}


def _one(turn: dict, keys: tuple[str, str], number: int) -> Any:
    """The value of a turn under either of two keys; None if there is none."""
    found = [turn[key] for key in keys if turn.get(key) is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise BadRecord(f"turn {number}: '{keys[0]}' and '{keys[1]}' differ; keep one of them.")
    return found[0] if found else None


def _parts(turn: Any) -> list:
    """The parts of a turn's content; an empty list if it is not in parts."""
    if type(turn) is not dict:
        return []
    content = turn.get("content") or turn.get("value")
    return content if type(content) is list else []


def _part(part: Any, number: int, marks: Counter) -> str:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if DEFAULT_IMAGE_TOKEN in part["text"]:
            raise BadRecord(
                f"turn {number}: the text of a part contains {DEFAULT_IMAGE_TOKEN}; replace it by a part "
                "{'type': 'image'}, or make the whole content one string."
            )
        return part["text"]
    if _is_picture(part):
        if part.get("index") not in (None, marks["image"]):
            raise BadRecord(
                f"turn {number}: picture {part['index']} is out of order; number pictures in their order."
            )
        marks["image"] += 1
        return DEFAULT_IMAGE_TOKEN
    raise BadRecord(f"turn {number}: {shown(part)} is not read: the models here take only pictures and text.")


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _is_texts(value: Any) -> bool:
    """Whether a value is a list of question-answer pairs; in other data sets `texts` may be anything else."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(pair, dict) and "user" in pair and "assistant" in pair for pair in value)
    )


def _turns_of_texts(texts: list[dict], num_images: int) -> list[dict]:
    """Make the turns. Pictures go before the first question's words unless <image> marks their places."""
    turns = []
    for pair in texts:
        turns += [{"from": "human", "value": pair["user"]}, {"from": "gpt", "value": pair["assistant"]}]
    if isinstance(turns[0]["value"], str) and not any(
        DEFAULT_IMAGE_TOKEN in str(turn["value"]) for turn in turns
    ):
        turns[0]["value"] = f"{DEFAULT_IMAGE_TOKEN}\n" * num_images + turns[0]["value"]
    return turns


def _is_content(value: Any) -> bool:
    return isinstance(value, bytes)


def _is_there(value: Any) -> bool:
    return _is_content(value) or bool(value)
