"""Stores conversations under random ids, so that a link brings them back on the machine that stored them."""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from threading import Lock
from zipfile import ZipFile

from llava.errors import UserError
from llava.pictures import load_image
from llava.serve.chat import Turn
from llava.wholefile import whole_file

NAME = re.compile(r"[0-9a-f]{32}")  # of 128 random bits, which cannot be guessed
FILE = re.compile(r"\.?[0-9a-f]{32}\.zip(\.\d+)?")  # of ours, those of a killed process included
CONTENT = "conversation.json"
MAX_CONVERSATIONS = 1000
MAX_BYTES = 2 * 2**30  # of all conversations
MAX_CONVERSATION_BYTES = 128 * 2**20
DAY = 86400  # seconds


class Conversations:
    """A folder of conversations, each in one zip file. Those that are too old are deleted.

    Args:
        folder: is created with the first conversation; only its owner can read it.
        days: the age at which a conversation is deleted.
    """

    def __init__(self, folder: Path, days: int):
        self.folder, self.days = folder, days
        self._lock = Lock()  # two visitors that save at once could exceed a limit
        self.delete_old()

    def save(self, turns: Sequence[Turn]) -> str:
        """Store the turns of a conversation. The pictures are stored without the metadata of their files.

        Returns:
            The id by which `load` finds them.
        Raises:
            UserError: if the conversation is too large, or the folder has no room.
        """
        with self._lock:
            self.delete_old()
            sizes = [path.stat().st_size for path in self._files()]
            if len(sizes) >= MAX_CONVERSATIONS or sum(sizes) > MAX_BYTES - MAX_CONVERSATION_BYTES:
                raise UserError(
                    "no link can be made, because this page's storage for conversations is full; ask its "
                    "owner, or try again in a few days, when older conversations have been deleted."
                )
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = secrets.token_hex(16)
            with whole_file(self._path(name)) as scratch, ZipFile(scratch, "w") as file:
                _write(file, turns)
        return name

    def load(self, name: str) -> list[Turn]:
        """Read a conversation by its id. Raises UserError if there is none, or no longer."""
        self.delete_old()
        if not NAME.fullmatch(name) or not self._path(name).is_file():
            raise UserError(
                f"this link's conversation is not stored here. Conversations are deleted after {self.days} "
                "days, and a link leads only to the machine on which it was made."
            )
        with ZipFile(self._path(name)) as file:
            return _read(file)

    def delete_old(self) -> None:
        """Delete the conversations that are too old."""
        oldest = time.time() - self.days * DAY
        for path in self._files():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.zip"

    def _files(self) -> Iterator[Path]:
        """Our own files in the folder, which may not exist yet."""
        if self.folder.is_dir():
            yield from (path for path in list(self.folder.iterdir()) if FILE.fullmatch(path.name))


def default_folder() -> Path:
    """llava/conversations in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llava" / "conversations"


def _write(file: ZipFile, turns: Sequence[Turn]) -> None:
    """Write a conversation: its texts in JSON, its pictures in PNG, which keeps every pixel."""
    records, size = [], 0
    for turn in turns:
        names = []
        for image in turn.images:
            data = BytesIO()
            image.save(data, "PNG", compress_level=1)  # the fastest
            size += len(data.getvalue())
            if size > MAX_CONVERSATION_BYTES:
                raise UserError(
                    f"no link can be made, because the conversation's pictures take more than "
                    f"{MAX_CONVERSATION_BYTES // 2**20} MiB; use fewer or smaller pictures."
                )
            names.append(f"{len(file.namelist())}.png")
            file.writestr(names[-1], data.getvalue())
        records.append(
            {
                "text": turn.text,
                "images": names,
                "answer": turn.answer,
                "ids": turn.ids,
                "scale_factor": turn.scale_factor,
            }
        )
    file.writestr(CONTENT, json.dumps(records))


def _read(file: ZipFile) -> list[Turn]:
    turns = []
    for record in json.loads(file.read(CONTENT)):
        images = tuple(load_image(BytesIO(file.read(name))) for name in record["images"])
        turns.append(Turn(**{**record, "images": images, "ids": tuple(record["ids"])}))
    return turns
