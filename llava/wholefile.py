"""Files that are whole or not there: what is written gets its name in one rename."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, synced: bool = True) -> Iterator[Path]:
    """The path of a file to write, which becomes `path` when the block ends, and is removed if it fails.

    Neither a kill nor a power failure leaves half of `path`. The file of a killed process stays beside it,
    hidden and with the process's number in its name, so that no two processes write one file.

    Args:
        path: the folders above it are made.
        synced: False where there are so many files that to wait for the disk each time takes too long: a
            power failure may then leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        if synced:
            sync(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    if synced:
        sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as scratch:
        scratch.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's names; else a rename may reach it earlier."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems sync files alone
            raise
    finally:
        os.close(descriptor)
