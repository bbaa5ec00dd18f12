"""A lock that keeps a second run out of an output folder."""

import logging
from contextlib import ExitStack, suppress
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from llava.errors import UserError
from llava.filelock import FileLock, Held
from llava.train import saving
from llava.train.guard import RunStopped

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class FolderLock:
    """The exclusive right to write into a folder. It ends with `release`, or with this process in any case.

    Raises:
        UserError: if another process has the lock, or the folder cannot be written to.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._is_new = not self._folder.exists()
        saving.check_writable(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._folder / LOCK_FILE)
        except Held as holder:
            raise UserError(
                f"--output_dir {str(self._folder)!r} is in use by a run: {holder}. "
                "Wait until it ends, stop it, or choose another --output_dir."
            ) from holder
        except OSError as error:
            raise UserError(saving.cannot_be_written(folder, error)) from error
        if self._lock.problem:
            logger.warning(
                "%s cannot be locked (%s). Do not start a second run with this --output_dir: it would not be "
                "refused.",
                self._folder / LOCK_FILE,
                self._lock.problem,
            )

    def release(self) -> None:
        """Remove the lock's file, and the folder if this lock made it and nothing else is in it."""
        self._lock.release()
        if self._is_new:
            with suppress(OSError):  # something else is in the folder, or somebody removed it
                self._folder.rmdir()


def lock_output_folder(args: TrainingArguments) -> ExitStack:
    """Have rank 0 lock --output_dir. Closing the returned stack unlocks it, and does nothing on other ranks.

    Raises:
        RunStopped: on every rank if rank 0 cannot lock it.
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
