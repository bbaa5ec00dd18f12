"""Progress bars for steps that may take long."""

import os
from collections.abc import Iterable, Iterator
from typing import IO, TypeVar

from tqdm import tqdm

DELAY = 2  # seconds; a step that is done by then shows no bar
ITEMS_A_LOOK = 64  # items between two queries of the file's position, which take as long as a short item

T = TypeVar("T")


def progress_bar(what: str, total: int | None, unit: str, **options) -> tqdm:
    """A bar that appears when a step has taken DELAY seconds, only in the first of several processes.

    A step that is run by only one of several processes shows its bar with disable=False.

    Args:
        what: names the step.
        total: units of the whole step.
        options: as tqdm takes them.
    """
    options = {"delay": DELAY, "disable": not is_first_process(), **options}
    return tqdm(desc=what, total=total, unit=unit, **options)


def is_first_process() -> bool:
    """Whether this is the first of several processes. torchrun, accelerate and deepspeed set RANK."""
    return os.environ.get("RANK", "0") == "0"


def by_bytes(items: Iterable[T], file: IO, what: str) -> Iterator[T]:
    """Yield items that are read from an open file, with a progress bar over the file's bytes."""
    raw = getattr(file, "buffer", file)  # a text file gives no position while it is iterated over
    size = os.fstat(raw.fileno()).st_size
    with progress_bar(what, size, "B", unit_scale=True, unit_divisor=1024) as bar:
        for number, item in enumerate(items, start=1):
            yield item
            if number % ITEMS_A_LOOK == 0:
                bar.update(raw.tell() - bar.n)
        bar.update(raw.tell() - bar.n)
