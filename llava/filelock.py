"""File locks that end with the process that has them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path


class Held(Exception):
    """Another process has the lock; the text says which, as far as it is known."""


class FileLock:
    """An exclusive lock on a file, which lasts until `release` or the end of this process.

    It is a POSIX lock. A forked process, such as a data worker that outlives a killed run, does not inherit
    it, and servers of network file systems keep it for all nodes. The process must not open the file again,
    because closing it would end the lock. The file says which process has the lock.

    Args:
        path: path of the file, which is created.
        wait: is called with the text of the file before the lock is waited for; None: do not wait.
    Attributes:
        problem: why the file system gives no locks; other processes are then not kept out. None if it does.
    Raises:
        Held: if another process has the lock and `wait` is None.
        OSError: if the file cannot be made or written to.
    """

    def __init__(self, path: Path, wait: Callable[[str], None] | None = None):
        self._path = path
        self.problem: OSError | None = None
        self._file = self._acquire(wait)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)

    def _acquire(self, wait: Callable[[str], None] | None) -> int:
        """Return the file's descriptor."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    self.problem = error
                    return file
                holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
                if wait is None:
                    os.close(file)
                    raise Held(holder) from error
                wait(holder)
                fcntl.lockf(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(file)):
                    return file
            os.close(file)  # the last holder removed the file between the two calls

    def release(self) -> None:
        """Remove the file and give the lock back."""
        with suppress(OSError):  # the file is gone, or the folder is no longer writable
            self._path.unlink()
        os.close(self._file)
