"""Removes locks that killed builds of torch extensions leave; later runs would wait for them for ever."""

import logging
import os
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

logger = logging.getLogger(__name__)

LONGEST_BUILD = 15 * 60  # seconds


def remove_stale_locks() -> None:
    """Remove the locks of builds that began so long ago that they cannot still be running.

    DeepSpeed has torch build its extensions at a run's start. During the build, torch keeps a file named
    `lock`. If the building process is killed, the file stays, and torch does not notice that.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
        try:
            if time.time() - lock.stat().st_mtime > LONGEST_BUILD:
                lock.unlink()
                logger.warning("removed %s, the lock of a build of an extension that was killed", lock)
        except OSError:  # another rank removed it, or it is another user's
            continue
