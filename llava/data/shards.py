"""WebDataset shards: tar files whose members KEY.json, KEY.jpg, ... together are one record.

A record is KEY.json, in any format that a JSON file may have, with its image KEY.jpg (jpeg, png, webp), or
images KEY.0.jpg, KEY.1.jpg, which replace the "image" of the JSON. It may also be an image with a caption,
KEY.txt, as img2dataset writes it. The webdataset library opens local shards or URLs and groups the members.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.files import check_data_file
from llava.data.forms import IMAGES, TURNS, as_record
from llava.data.record import BadRecord
from llava.errors import UserError
from llava.textfile import HEAD, TAR, kind_of

IMAGE_SUFFIX = re.compile(r"(?:(\d+)\.)?(?:jpg|jpeg|png|webp)")
UNSEEN_SUFFIX = re.compile(r"(?:\d+\.)?(?:mp4|mov|avi|mkv|webm|mp3|wav|flac|ogg|m4a)")  # video and sound
END_OF_TAR = 1024  # zero bytes that end a tar archive


def is_shards(path: str | Path) -> bool:
    return str(path).endswith(".tar")


def expand_shards(path: str) -> list[str]:
    """Expand the braces of a --data_path of shards: 'shards/{000..127}.tar' gives 128 shards.

    Raises:
        UserError: if webdataset is not installed, or a local shard does not exist.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise UserError(
            f"--data_path {path}: webdataset, which reads shards, is not installed; "
            "run pip install -e '.[train]'."
        ) from error
    shards = expand_urls(str(path))
    missing = [shard for shard in shards if ":" not in shard and not Path(shard).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(shards)} shard(s) do not exist, the first: {missing[0]}; "
            "check --data_path."
        )
    return shards


@dataclass
class ShardSample:
    """The members of one key, as bytes.

    Attributes:
        name: shard and key, for messages.
        members: maps an extension (everything after the key's first dot, in lower case) to the content.
    """

    name: str
    key: str
    members: dict[str, bytes]

    def record(self) -> dict:
        """The unchecked record, whose images are names of members. Raises BadRecord."""
        record = self._json()
        if not (isinstance(record, dict) and not record.keys().isdisjoint(TURNS)) and "txt" in self.members:
            record = {"conversations": self._caption()}
        if record is None:
            raise BadRecord(
                f"{self.name}: it has neither {self.key}.json nor {self.key}.txt; its members are "
                f"{', '.join(self.members)}."
            )
        if not isinstance(record, dict):
            return record
        unseen = [member for member in self.members if UNSEEN_SUFFIX.fullmatch(member)]
        if unseen:
            raise BadRecord(
                f"{self.name}: {self.key}.{unseen[0]} is not read: the models here take only pictures and "
                "text; leave the sample out."
            )
        record = {key: value for key, value in record.items() if key not in IMAGES}
        return as_record({"id": self.key, **record, "image": self._images()})

    def open(self, member: str) -> BytesIO:
        """Open a member's bytes as a file, with a `name` for messages."""
        content = BytesIO(self.members[member])
        content.name = f"{self.key}.{member}"
        return content

    def _json(self) -> Any:
        try:
            return json.loads(self.members["json"]) if "json" in self.members else None
        except ValueError as error:  # not JSON, or not UTF-8
            raise BadRecord(f"{self.name}: {self.key}.json cannot be read ({error}); correct it.") from error

    def _caption(self) -> list[dict]:
        try:
            words = self.members["txt"].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRecord(f"{self.name}: {self.key}.txt is not UTF-8 ({error}); correct it.") from error
        return [{"from": "human", "value": DEFAULT_IMAGE_TOKEN}, {"from": "gpt", "value": words}]

    def _images(self) -> list[str]:
        numbered = {
            member: int(match.group(1) or 0)
            for member in self.members
            if (match := IMAGE_SUFFIX.fullmatch(member))
        }
        return sorted(numbered, key=lambda member: (numbered[member], member))


def read_shard(shard: str) -> Iterator[ShardSample]:
    """Yield the samples of a shard.

    Raises:
        BadRecord: if the shard cannot be opened, or is corrupt or cut short; the message names it.
    """
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        with gopen(shard) as file:
            stream = _WatchedStream(file, shard)
            stream.check_start()
            for sample in group_by_keys(tar_file_expander([{"url": shard, "stream": stream}])):
                key = sample["__key__"]
                members = {name: data for name, data in sample.items() if not name.startswith("__")}
                yield ShardSample(f"{shard}, sample {key}", key, members)
            stream.check_end()
    except BadRecord:
        raise
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        problem = error.args[0] if error.args else error
        raise BadRecord(
            f"{shard}: {type(error).__name__}: {problem}; the shard is corrupt or cut short: fetch it "
            "again, or leave it out of --data_path."
        ) from error


class _WatchedStream:
    """A tar file that is read from start to end, with checks of its start and its end.

    tarfile mistakes a broken header for the end of the archive. The zeros at the end of a complete archive
    show the difference. Only a broken header in the last 10 KB, which tarfile has then buffered, is missed.
    """

    def __init__(self, file, name: str):
        self.file, self.name = file, name
        self.head = file.read(HEAD)  # the first bytes, until read() returns them
        self.tail = b""

    def __repr__(self) -> str:  # webdataset shows it in its messages
        return self.name

    def read(self, size: int = -1) -> bytes:
        assert size < 0 or size >= HEAD  # tarfile asks for 10 KB at a time
        data, self.head = self.head, b""
        data += self.file.read(size - len(data))
        self.tail = (self.tail + data)[-END_OF_TAR:]
        return data

    def check_start(self) -> None:
        kind = kind_of(self.head)
        if kind is not None and kind != TAR:
            raise BadRecord(
                f"{self.name} is {kind[0]}, but a shard must be an uncompressed tar archive: {kind[1]}, or "
                "leave it out of --data_path."
            )

    def check_end(self) -> None:
        while rest := self.read(1 << 20):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("the header of a member is damaged")
        if len(self.tail) < END_OF_TAR or self.tail.strip(b"\0"):
            raise tarfile.ReadError("its end is missing")


def expand_all(paths: Sequence[str]) -> list[list[str]]:
    """The shards of each --data_path. Raises UserError if some are shards and some are not."""
    plain = [path for path in paths if not is_shards(path)]
    if plain:
        raise UserError(
            f"--data_path mixes tar shards with {plain[0]}: shards are streamed, but other files are read at "
            "the start; give only one kind."
        )
    return [expand_shards(path) for path in paths]


def check_data_paths(paths: Sequence[str]) -> None:
    """Check that each --data_path exists and is of a supported kind, without reading it.

    Raises:
        UserError: for the first path that fails; also like expand_all.
    """
    for path in paths:
        if not is_shards(path):
            check_data_file(path)
    if any(map(is_shards, paths)):
        expand_all(paths)
