"""The same records written in every form that training reads."""

import json
from pathlib import Path

import pyarrow
from pyarrow import ipc, parquet

from llava.data.record import image_files, system_text, turns_of

ROLES = {"human": "user", "gpt": "assistant"}
MARK = "<image>"


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


# In LLaVA's form: one picture, two in the middle of a text, no picture, and a system text
RECORDS = [
    {"id": "0", "image": "a.png", "conversations": turns(f"{MARK}\nWhat?", "A bus.", "Sure?", "Yes.")},
    {
        "id": "1",
        "image": ["b.png", "a.png"],
        "conversations": turns(f"First: {MARK} Then: {MARK} Which?", "The one on the left."),
    },
    {"id": "2", "conversations": turns("Count the dogs.", "There are 12.")},
    {"id": "3", "system": "Be brief.", "conversations": turns("Hi", "Hello!")},
]
WITHOUT_SYSTEM = RECORDS[:3]


def messages(record: dict) -> dict:
    """`messages` with marks in strings and a system turn first, and `images` beside them."""
    said = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns_of(record)]
    if system := system_text(record):
        said.insert(0, {"role": "system", "content": system})
    row = {"id": record.get("id"), "messages": said}
    return row | ({"images": image_files(record)} if image_files(record) else {})


def with_parts(record: dict, key: str | None = None) -> dict:
    """`messages` whose contents are parts. The pictures are in parts under `key`, or beside `messages`."""
    row, files = messages(record), iter(image_files(record))
    for turn in row["messages"]:
        first, *rest = turn["content"].split(MARK)
        parts = [{"type": "text", "text": first}] if first else []
        for text in rest:
            parts.append({"type": "image", **({key: next(files)} if key else {})})
            parts += [{"type": "text", "text": text}] if text else []
        turn["content"] = parts
    if key:
        row.pop("images", None)
    return row


def sharegpt(record: dict) -> dict:
    """`conversations` of objects with role and content."""
    row = messages(record)
    return {"conversations": row.pop("messages"), **row}


def texts(record: dict) -> dict:
    """Pairs as in the_cauldron and FineVision, which have no field for a system text."""
    said = [turn["value"] for turn in record["conversations"]]
    pairs = [{"user": q, "assistant": a, "source": "x"} for q, a in zip(said[::2], said[1::2], strict=True)]
    if said[0].startswith(MARK):  # these sets put the pictures there, without a mark
        pairs[0]["user"] = said[0].removeprefix(f"{MARK}\n")
    return {"id": record["id"], "images": image_files(record), "texts": pairs}


def embedded(row: dict, folder: Path) -> dict:
    """The row with its pictures' bytes instead of their names."""

    def picture(name):
        return None if name is None else {"bytes": (folder / name).read_bytes(), "path": name}

    changed = dict(row)
    for key in ("image", "images"):
        if key in row:
            names = row[key]
            changed[key] = list(map(picture, names)) if isinstance(names, list) else picture(names)
    return changed


def write_json(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict], rows_in_group: int = 2) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_in_group)
    return path


def write_arrow(path: Path, rows: list[dict], is_stream: bool = False) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file:
        opened = (ipc.new_stream if is_stream else ipc.new_file)(file, table.schema)
        with opened as writer:
            writer.write_table(table, max_chunksize=2)
    return path


def with_all_keys(rows: list[dict]) -> list[dict]:
    """The rows with None for missing keys, because a table has the same columns in each row."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]
