"""Several records in one row of model_max_length positions: less padding, the same loss."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.data.dataset import SupervisedDataset
from llava.data.mixture import Mixture
from llava.data.record import BadRecord

logger = logging.getLogger(__name__)

NUM_OPEN_ROWS = 128  # enough to fill rows to a percent or two; bounds what a stream holds back

T = TypeVar("T")


def pack(items: Iterable[tuple[T, int]], capacity: int, num_open: int = NUM_OPEN_ROWS) -> Iterator[list[T]]:
    """Put items, as they come, into rows: each where it leaves the least space (best fit).

    Args:
        items: (item, length), no length above `capacity`.
        num_open: rows filled at once; beyond, the fullest is given out as it is.
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


class _Lengths(Dataset):
    """This process's share of a data set's exact lengths."""

    def __init__(self, dataset: SupervisedDataset, indices: range):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> int:
        return self.dataset.length(self.indices[index])


def exact_lengths(dataset: SupervisedDataset, num_workers: int = 0) -> Tensor:
    """long[N]: positions of every record, 0 for a bad one that is skipped; all processes share the work."""
    is_split = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_split else (0, 1)
    share = _Lengths(dataset, range(rank, len(dataset), world_size))
    batches = DataLoader(share, batch_size=256, num_workers=num_workers, collate_fn=torch.tensor)
    progress = tqdm(batches, desc="measuring records", unit="batch of 256", disable=rank > 0)
    own = torch.cat([torch.zeros(0, dtype=torch.long), *progress])
    parts = [own] * world_size
    if is_split:
        dist.all_gather_object(parts, own)
    lengths = torch.zeros(len(dataset), dtype=torch.long)
    for other, part in enumerate(parts):
        lengths[other::world_size] = part
    return lengths


class PackedDataset(Dataset):
    """Packs of a data set's records: fixed once, from their exact lengths in a seeded random order.

    Args:
        dataset: its records, as its mixture has them in the first epoch, are read as packs are asked for.
        num_workers: processes that measure the records.
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
            raise BadRecord("No good record is left to pack: each is listed above.")
        # two tensors, not lists: see SupervisedDataset
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
        """A pack's samples, without what proves bad; if all do, the next pack in its place."""
        index = range(len(self))[index]
        for candidate in (*range(index, len(self)), *range(index)):
            samples = [self.dataset.read(record) for record in self.members(candidate)]
            good = [sample for sample in samples if sample is not None]
            if good:
                return good
        raise BadRecord("No good record is left to pack: each is listed above.")

    @property
    def bad_records(self) -> list[str]:
        return self.dataset.bad_records

    @property
    def num_truncated(self) -> int:
        return self.dataset.num_truncated
