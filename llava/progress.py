"""Progress bars for steps that may take long."""

import os
from collections.abc import Iterable, Iterator
from typing import IO, TypeVar

from tqdm import tqdm

DELAY = 2  # seconds; a step that is done by then shows no bar
ITEMS_A_LOOK = 64  # read from a file between two looks at the place in it, which take as long as a short item

T = TypeVar("T")


def progress_bar(what: str, total: int | None, unit: str, **options) -> tqdm:
    """A bar that appears when a step has taken DELAY seconds, in the first of several processes alone.

    What only one process of several does shows its bar with disable=False.

    Args:
        what: names the step.
        total: units of the whole step.
        options: as tqdm takes them.
    """
    options = {"delay": DELAY, "disable": not is_first_process(), **options}
    return tqdm(desc=what, total=total, unit=unit, **options)


def is_first_process() -> bool:
    """Whether this process is the one of several that speaks; torchrun, accelerate and deepspeed say it."""
    return os.environ.get("RANK", "0") == "0"


def by_bytes(items: Iterable[T], file: IO, what: str) -> Iterator[T]:
    """The items that are being read from an open file, under a bar of the file's bytes."""
    raw = getattr(file, "buffer", file)  # a text file does not tell its place while it is iterated over
    size = os.fstat(raw.fileno()).st_size
    with progress_bar(what, size, "B", unit_scale=True, unit_divisor=1024) as bar:
        for number, item in enumerate(items, start=1):
            yield item
            if number % ITEMS_A_LOOK == 0:
                bar.update(raw.tell() - bar.n)
        bar.update(raw.tell() - bar.n)
