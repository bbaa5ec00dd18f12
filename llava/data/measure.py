"""Lengths and image sizes of all records, measured in parallel once and stored beside the index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from llava.data.index import FORMAT, IMAGES, NUM_THREADS, SPOT_CHECKS, WORDS, RecordIndex
from llava.data.kept import ArrayCache, KeptArray
from llava.data.record import image_files
from llava.data.sample import SampleBuilder
from llava.errors import UserError
from llava.mm_utils import image_size
from llava.progress import progress_bar

AT_ONCE = 256  # records that a process measures before it returns the results

Measure = Callable[[range], np.ndarray]  # maps a range of records to the results, in order


class _Parts(Dataset):
    """The results of a measure, for AT_ONCE records at a time."""

    def __init__(self, measure: Measure, num_records: int):
        self.measure, self.num_records = measure, num_records

    def __len__(self) -> int:
        return -(-self.num_records // AT_ONCE)

    def __getitem__(self, part: int) -> np.ndarray:
        return self.measure(range(part * AT_ONCE, min((part + 1) * AT_ONCE, self.num_records)))


def _same(part: np.ndarray) -> np.ndarray:
    return part


def in_parallel(measure: Measure, num_records: int, num_workers: int, what: str) -> np.ndarray:
    """Measure all records, in order, with a progress bar.

    Args:
        num_workers: processes for each rank of this node. One rank measures while the others wait, so it uses
            the processes of all ranks.
    """
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    loader = DataLoader(
        _Parts(measure, num_records),
        batch_size=None,
        collate_fn=_same,
        num_workers=max(num_workers, min(num_workers * num_ranks, os.cpu_count() or 1)),
        generator=torch.Generator(),  # so that a later run, which measures nothing, draws the same numbers
    )
    parts = []
    with progress_bar(what, num_records, "record", disable=False) as bar:
        for part in loader:
            parts.append(part)
            bar.update(min(AT_ONCE, num_records - bar.n))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


class _ImageSizes:
    """Measures int32[images, 2]: width and height of each image of records, (0, 0) if it cannot be read."""

    def __init__(self, index: RecordIndex):
        self.index = index

    def __call__(self, rows: range) -> np.ndarray:
        sources = [source for row in rows if self.index.rows[row, IMAGES] for source in self._sources(row)]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            sizes = list(pool.map(_size, sources))
        return np.array(sizes, dtype=np.int32).reshape(-1, 2)

    def _sources(self, row: int) -> list:
        record, _, place = self.index.read(row)
        return list(map(self.index.reader.source_of(place), image_files(record)))


def _size(source) -> tuple[int, int]:
    try:
        return image_size(source)
    except UserError:
        return 0, 0


def image_positions(
    index: RecordIndex, builder: SampleBuilder, cache: ArrayCache, num_workers: int = 0
) -> np.ndarray:
    """int64[images]: the visual positions of every image of every record; 0 if it cannot be read."""
    num_images = int(index.rows[:, IMAGES].sum())
    if not builder.is_tiled:
        return np.full(num_images, builder.visual_positions((1, 1)) if num_images else 0)
    measure = _ImageSizes(index)

    def make() -> tuple[np.ndarray, list]:
        return in_parallel(measure, len(index), num_workers, "opening image headers").reshape(-1, 2), []

    def is_true(kept: KeptArray) -> bool:
        """Whether the images of some records still have the stored sizes."""
        ends = index.rows[:, IMAGES].cumsum()
        rows = np.flatnonzero(index.rows[:, IMAGES])
        return all(
            np.array_equal(measure(range(row, row + 1)), kept.array[: ends[row]][-index.rows[row, IMAGES] :])
            for row in rows[:: max(1, len(rows) // SPOT_CHECKS)].tolist()
        )

    what = f"the image sizes of {index.reader.path}"
    sizes = cache.get(["image sizes", FORMAT, index.key], what, make, is_true).array.astype(np.int64)
    distinct, which = np.unique(sizes[:, 0] << 32 | sizes[:, 1], return_inverse=True)
    positions = [
        builder.visual_positions((size >> 32, size & 0xFFFFFFFF)) if size else 0 for size in distinct.tolist()
    ]
    return np.array(positions, dtype=np.int64)[which]


def estimates(
    index: RecordIndex, builder: SampleBuilder, cache: ArrayCache, num_workers: int = 0
) -> np.ndarray:
    """int64[N]: `SampleBuilder.estimate` of every record; 0 if one of its images cannot be read."""
    words, num_images = index.rows[:, WORDS], index.rows[:, IMAGES]
    positions = image_positions(index, builder, cache, num_workers)
    ends = num_images.cumsum()

    def of_records(values: np.ndarray) -> np.ndarray:
        totals = np.concatenate([[0], values.cumsum()])
        return totals[ends] - totals[ends - num_images]

    can_be_read = of_records(positions == 0) == 0 if builder.is_tiled else True
    return np.where(num_images > 0, words + of_records(positions), -words) * can_be_read


def exact_lengths_key(
    index: RecordIndex, builder: SampleBuilder, cache: ArrayCache, num_workers: int = 0
) -> list:
    """The cache key of an index's exact lengths: everything that decides them."""
    tokenizer: Any = builder.tokenizer
    tokenizer("")  # a call resets truncation and padding, which the tokenizer's file may have set
    state = [type(tokenizer).__name__, tokenizer.bos_token_id, tokenizer.backend_tokenizer.to_str()]
    positions = image_positions(index, builder, cache, num_workers)
    return [
        *("exact lengths and prefixes", FORMAT, index.key, builder.template, builder.mm_use_im_start_end),
        *(builder.model_max_length, hashlib.sha256(repr(state).encode()).hexdigest()),
        hashlib.sha256(positions.tobytes()).hexdigest(),
    ]
