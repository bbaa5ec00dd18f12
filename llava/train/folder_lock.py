"""One run at a time in an output folder."""

import errno
import fcntl
import logging
import os
import socket
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from llava.errors import UserError
from llava.train import saving
from llava.train.guard import RunStopped

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class FolderLock:
    """The right to write into a folder. It ends with `release`, and with this process however that ends.

    It is a lock of POSIX on a file of the folder. A forked process, such as a data worker that outlives a
    killed run, does not inherit it, and servers of network file systems keep it for all nodes. The process
    must not open that file again: closing it would end the lock. The file holds who has the lock.

    Raises:
        UserError: if another process has the lock, or the folder cannot be written to.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._is_new = not self._folder.exists()
        saving.check_writable(folder)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._acquire()
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())
        except OSError as error:
            raise UserError(saving.cannot_be_written(folder, error)) from error

    @property
    def _path(self) -> Path:
        return self._folder / LOCK_FILE

    def _acquire(self) -> int:
        """The lock file's descriptor."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    holder = os.read(file, 1000).decode(errors="replace").strip()
                    os.close(file)
                    raise UserError(
                        f"--output_dir {str(self._folder)!r} is in use by a run: "
                        f"{holder or 'another process'}. "
                        "Wait for its end or stop it, or choose another --output_dir."
                    ) from error
                logger.warning(
                    "%s cannot be locked (%s). Start no second run with this --output_dir: it would not be "
                    "refused.",
                    self._path,
                    error,
                )
                return file
            if self._path.exists() and os.path.samestat(os.stat(self._path), os.fstat(file)):
                return file
            os.close(file)  # the run before removed it between the two calls

    def release(self) -> None:
        """Remove the file, and the folder if this lock made it and nothing else is in it."""
        with suppress(OSError):  # as where something else is in the folder, or somebody removed it
            self._path.unlink()
            if self._is_new:
                self._folder.rmdir()
        os.close(self._file)


def lock_output_folder(args: TrainingArguments) -> ExitStack:
    """Have rank 0 lock --output_dir. What is returned releases it; on the other ranks it does nothing.

    Raises:
        RunStopped: on every rank if that fails.
    """
    lock, refusal = ExitStack(), [""]
    if args.process_index == 0:
        try:
            lock.callback(FolderLock(args.output_dir).release)
        except UserError as error:
            refusal = [str(error)]
    if args.world_size > 1:
        broadcast_object_list(refusal)
    if refusal[0]:
        raise RunStopped(refusal[0] if args.process_index == 0 else "")
    return lock
