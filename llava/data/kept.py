"""A cache folder of arrays that are computed from the data once, for all processes and later runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llava.errors import UserError
from llava.filelock import FileLock
from llava.progress import is_first_process
from llava.wholefile import whole_file

logger = logging.getLogger(__name__)

NAME = re.compile(r"[0-9a-f]{32}\.npy")  # of our files; a user's folder may hold others
UNUSED_DAYS = 90  # after which an array is removed: a changed data file leaves its old arrays behind
ENVIRONMENT = "LLAVA_INDEX_FOLDER"  # names the folder if --index_folder is not given


class KeptArray:
    """A file with an array, followed by notes. It is pickled as its path; each process maps the file itself.

    Attributes:
        array: the read-only array.
        notes: the notes, any JSON value.
    """

    def __init__(self, path: Path):
        self.path = path

    def __getstate__(self) -> dict:
        return {"path": self.path}

    @cached_property
    def array(self) -> np.ndarray:
        return np.asarray(self._mapped)

    @cached_property
    def notes(self) -> Any:
        with open(self.path, "rb") as file:
            file.seek(self._mapped.offset + self._mapped.nbytes)
            return json.loads(file.read())

    @cached_property
    def _mapped(self) -> np.memmap:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def is_whole(self) -> bool:
        """Whether the file exists and can be read as `write` writes it."""
        try:
            return self.array is not None and self.notes is not None
        except (OSError, EOFError, ValueError):
            return False

    def write(self, array: np.ndarray, notes: Any) -> None:
        """Write the file, whole or not at all. Raises UserError if it cannot be written."""
        try:
            with whole_file(self.path) as scratch, open(scratch, "wb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
                file.write(json.dumps(notes).encode())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error}); choose another --index_folder."
            ) from error


class ArrayCache:
    """The folder of the stored arrays.

    Args:
        folder: its path; None: `default_folder`.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder or default_folder())

    def get(
        self,
        key: list,
        what: str,
        make: Callable[[], tuple[np.ndarray, Any]],
        is_true: Callable[[KeptArray], bool] = lambda kept: True,
    ) -> KeptArray:
        """Return the array stored under a key; if there is none, one process makes it while others wait.

        Making one removes the arrays that no run has used for UNUSED_DAYS.

        Args:
            key: everything that decides the content of the array, as JSON.
            what: names the array in messages.
            make: returns the array and the notes.
            is_true: whether an array stored earlier is still right; if not, it is made again.
        """
        name = f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npy"
        kept = KeptArray(self.folder / name)
        if kept.is_whole() and is_true(kept):
            with suppress(OSError):  # the folder may be read-only
                os.utime(kept.path)
            return kept
        path = self._writable / name

        def wait(holder: str) -> None:
            logger.info("waiting for %s, made by %s", what, holder)

        lock = FileLock(path.with_suffix(".lock"), wait)
        try:
            kept = KeptArray(path)  # the process that had the lock may have made it
            if not (kept.is_whole() and is_true(kept)):
                kept = KeptArray(path)
                kept.write(*make())
                remove_unused(path.parent)
            return kept
        finally:
            lock.release()

    @cached_property
    def _writable(self) -> Path:
        """The folder; if it cannot be written to, a temporary folder, with a warning."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return self.folder
        except OSError as error:
            folder = temporary_folder()
            if is_first_process():
                logger.warning(
                    "%s cannot be written to (%s), so the index of the data is kept in %s for this run only. "
                    "Choose a folder with --index_folder.",
                    *(self.folder, error, folder),
                )
            return folder


def remove_unused(folder: Path) -> None:
    """Remove the arrays of a folder that were last used more than UNUSED_DAYS ago."""
    oldest = time.time() - UNUSED_DAYS * 24 * 60 * 60
    for path in folder.iterdir():
        with suppress(OSError):  # another process may have removed it
            if NAME.fullmatch(path.name) and path.stat().st_mtime < oldest:
                path.unlink()


def default_folder() -> Path:
    """The folder that ENVIRONMENT names, else llava/records in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(ENVIRONMENT) or Path(cache) / "llava" / "records")


def temporary_folder() -> Path:
    """A folder for all processes of this user; if it belongs to another user, one only for this process."""
    folder = Path(tempfile.gettempdir()) / f"llava-records-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="llava-records-"))
    return folder
