"""Locks that a killed build of a torch extension leaves, for which every later run would wait for ever."""

import logging
import os
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

logger = logging.getLogger(__name__)

LONGEST_BUILD = 15 * 60  # seconds


def remove_stale_locks() -> None:
    """Remove the locks of builds that began too long ago to go on still.

    DeepSpeed has torch build its extensions at a run's start. torch makes a file named `lock` for that time,
    and does not notice that its maker was killed.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
        try:
            if time.time() - lock.stat().st_mtime > LONGEST_BUILD:
                lock.unlink()
                logger.warning("removed %s, which a killed build of an extension left", lock)
        except OSError:  # another rank removed it, or it is another user's
            continue
