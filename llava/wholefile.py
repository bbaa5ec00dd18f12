"""Writes files that are either complete or absent: a written file gets its name by one rename."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to `path` when the block ends, removed if it fails.

    Neither a kill nor a power failure leaves half of `path`. The temporary file of a killed process stays
    beside it. Its hidden name has the process's number, so no two processes write the same file.

    Args:
        path: the folders above it are created.
        synced: False if there are so many files that waiting for the disk each time takes too long. A power
            failure may then leave an empty file.
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
    """Wait until a file's content or a folder's names are on disk; otherwise a rename may come first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems sync only files
            raise
    finally:
        os.close(descriptor)
