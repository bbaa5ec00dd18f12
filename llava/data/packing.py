"""Packs several records into one row of model_max_length positions, for less padding and the same loss."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava.data.dataset import SupervisedDataset
from llava.data.measure import exact_lengths_key, in_parallel
from llava.data.mixture import Mixture
from llava.data.record import BadRecord

logger = logging.getLogger(__name__)

NUM_OPEN_ROWS = 128  # enough to fill rows to a percent or two; limits the samples that a stream holds back

T = TypeVar("T")


def pack(items: Iterable[tuple[T, int]], capacity: int, num_open: int = NUM_OPEN_ROWS) -> Iterator[list[T]]:
    """Put items into rows in the order in which they come, each into the row with the least space (best fit).

    Args:
        items: (item, length); no length may exceed `capacity`.
        num_open: the most rows filled at once; if there are more, the fullest row is yielded as it is.
    """
    spaces: list[tuple[int, int]] = []  # (space left, row), ascending
    rows: dict[int, list[T]] = {}
    for number, (item, length) in enumerate(items):
        assert 0 < length <= capacity
        fit = bisect_left(spaces, (length, -1))
        if fit < len(spaces):
            space, row = spaces.pop(fit)
        else:
            space, row = capacity, number
            rows[row] = []
        rows[row].append(item)
        if space > length:
            insort(spaces, (space - length, row))
        else:
            yield rows.pop(row)
        if len(spaces) > num_open:
            yield rows.pop(spaces.pop(0)[1])
    for _, row in spaces:
        yield rows.pop(row)


class _Lengths:
    """Measures exact lengths of a data set's records, int32[N]: negative for one that is cut, 0 if bad."""

    def __init__(self, dataset: SupervisedDataset, first: int):
        self.dataset, self.first = dataset, first

    def __call__(self, rows: range) -> np.ndarray:
        return np.array([self._of(self.first + row) for row in rows], dtype=np.int32)

    def _of(self, index: int) -> int:
        try:
            encoded, _ = self.dataset.encode(index)
        except BadRecord:
            return 0
        return -encoded.length if encoded.truncated else encoded.length


def exact_lengths(dataset: SupervisedDataset, num_workers: int = 0) -> Tensor:
    """Return long[N]: the positions of each record, 0 for a skipped bad one; measured once and stored.

    Args:
        num_workers: processes for each rank that measure.
    Raises:
        BadRecord: for a bad record that is not to be skipped.
    """
    parts, first = [], 0
    for index in dataset.indices:
        measure = _Lengths(dataset, first)

        def make(measure: _Lengths = measure, num_records: int = len(index)) -> tuple[np.ndarray, list]:
            return in_parallel(measure, num_records, num_workers, "measuring records"), []

        key = exact_lengths_key(index, dataset.builder, dataset.cache, num_workers)
        parts.append(dataset.cache.get(key, f"the exact lengths of {index.reader.path}", make).array)
        first += len(index)
    lengths = torch.from_numpy(np.concatenate(parts)).long()
    dataset.note_truncated((lengths < 0).nonzero().flatten())
    for record in (lengths == 0).nonzero().flatten().tolist():
        lengths[record] = dataset.length(record)
    return lengths.abs()


class PackedDataset(Dataset):
    """Packs of a data set's records, made once from their exact lengths in a seeded random order.

    Args:
        dataset: provides the records that its mixture has in the first epoch; they are read with their pack.
        num_workers: processes for each rank that measure the records.
    Raises:
        BadRecord: if no good record is left.
    """

    def __init__(self, dataset: SupervisedDataset, num_workers: int = 0):
        self.dataset = dataset
        lengths = exact_lengths(dataset, num_workers)
        indices = dataset.mixture.indices(epoch=0)
        indices = indices[lengths[indices] > 0]
        generator = torch.Generator().manual_seed(dataset.mixture.seed)
        indices = indices[torch.randperm(len(indices), generator=generator)]
        capacity = dataset.builder.model_max_length
        packs = list(pack(zip(indices.tolist(), lengths[indices].tolist(), strict=True), capacity))
        if not packs:
            raise BadRecord("There is no good record to pack: the bad ones are listed above.")
        # two tensors, since a list of objects would be copied into each worker as it is read
        self._records = torch.tensor([record for members in packs for record in members])
        self._ends = torch.tensor(list(accumulate(map(len, packs))))
        self.mixture = Mixture([len(packs)], seed=dataset.mixture.seed)
        logger.info(
            "packing: %d records in %d rows of %d positions, %.1f%% full",
            len(indices),
            len(packs),
            capacity,
            100 * int(lengths[indices].sum()) / (len(packs) * capacity),
        )

    def __len__(self) -> int:
        return len(self._ends)

    def members(self, index: int) -> list[int]:
        """The records of a pack."""
        start = int(self._ends[index - 1]) if index else 0
        return self._records[start : int(self._ends[index])].tolist()

    def __getitem__(self, index: int) -> list[dict]:
        """The good samples of a pack; if all its records prove bad, those of the next pack."""
        index = range(len(self))[index]
        for step in range(len(self)):
            samples = [self.dataset.read(record) for record in self.members((index + step) % len(self))]
            good = [sample for sample in samples if sample is not None]
            if good:
                return good
        raise BadRecord("There is no good record to pack: the bad ones are listed above.")

    @property
    def bad_records(self) -> list[str]:
        return self.dataset.bad_records

    @property
    def num_truncated(self) -> int:
        return self.dataset.num_truncated
