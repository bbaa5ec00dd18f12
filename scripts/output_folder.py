"""Write a folder in one step, so that a converter leaves a complete folder or none."""

import shutil
from collections.abc import Callable
from pathlib import Path

from llava.errors import UserError


def write_folder(folder: Path, required: tuple[str, ...], write: Callable[[Path], None]) -> bool:
    """Fill a temporary sibling of `folder` with `write`, then rename it into place.

    Args:
        folder: the folder to make; left as it is when it already holds every required file.
        required: names of files that a complete folder holds.
        write: is given the empty temporary folder.
    Returns:
        Whether anything was written.
    Raises:
        UserError: if `folder` exists, is not empty and lacks a required file: it is not overwritten.
    """
    absent = [name for name in required if not (folder / name).is_file()]
    if not absent:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists but lacks {', '.join(absent)}; remove it or choose another --output."
        )
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted run
    partial.mkdir(parents=True)
    try:
        write(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True
