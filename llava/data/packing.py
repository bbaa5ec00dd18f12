"""Packs several records into one row of model_max_length positions, for less padding and the same loss."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava.data.dataset import SupervisedDataset
from llava.data.lengths import UNSHARED, ExactLengths, exact_lengths
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


class Sequences(NamedTuple):
    """Records put together into sequences, which are then packed into rows.

    Attributes:
        order: long[n], the records' numbers, sequence by sequence.
        ends: long[S], where each sequence ends in `order`.
        lengths: the positions of each sequence.
    """

    order: Tensor
    ends: Tensor
    lengths: list[int]


def share_prefixes(lengths: ExactLengths, capacity: int) -> Sequences:
    """Put records with equal keys into one sequence, which has their prefix once.

    Sequences, and the records in each, keep the order in which the records come. A record that no longer
    fits into its sequence begins another one.

    Args:
        lengths: those of n records; none is longer than `capacity`.
        capacity: the most positions of a sequence.
    """
    number = torch.arange(len(lengths.keys))
    keys = torch.where(lengths.keys == UNSHARED, UNSHARED - 1 - number, lengths.keys)
    _, group = keys.unique(return_inverse=True)
    first = torch.full_like(number, len(number)).scatter_reduce(0, group, number, "amin")
    order = first[group].argsort(stable=True)
    filled: list[int] = []
    ends: list[int] = []
    previous = None
    of_records = (values[order].tolist() for values in (keys, lengths.whole, lengths.prefix))
    for end, (key, whole, prefix) in enumerate(zip(*of_records, strict=True), start=1):
        if key == previous and filled[-1] + whole - prefix <= capacity:
            filled[-1] += whole - prefix
            ends[-1] = end
        else:
            filled.append(whole)
            ends.append(end)
        previous = key
    return Sequences(order, torch.tensor(ends), filled)


class PackedDataset(Dataset):
    """Packs of a data set's records, made once from their exact lengths in a seeded random order.

    Args:
        dataset: provides the records that its mixture has in the first epoch; they are read with their pack.
        num_workers: processes for each rank that measure the records.
        share_images: records with the same prefix of the same pictures share it (`share_prefixes`).
    Raises:
        BadRecord: if no good record is left.
    """

    def __init__(self, dataset: SupervisedDataset, num_workers: int = 0, share_images: bool = False):
        self.dataset, self.share_images = dataset, share_images
        lengths = exact_lengths(dataset, num_workers)
        indices = dataset.mixture.indices(epoch=0)
        indices = indices[lengths.whole[indices] > 0]
        generator = torch.Generator().manual_seed(dataset.mixture.seed)
        indices = indices[torch.randperm(len(indices), generator=generator)]
        capacity = dataset.builder.model_max_length
        lengths = ExactLengths(*(values[indices] for values in lengths))
        if not share_images:
            lengths = lengths._replace(keys=torch.full_like(lengths.keys, UNSHARED))
        sequences = share_prefixes(lengths, capacity)
        packs = list(pack(enumerate(sequences.lengths), capacity))
        if not packs:
            raise BadRecord("There is no good record to pack: the bad ones are listed above.")
        # tensors, since a list of objects would be copied into each worker as it is read
        self._records = indices[sequences.order]
        self._sequence_ends = sequences.ends
        self._sequences = torch.tensor([sequence for members in packs for sequence in members])
        self._ends = torch.tensor(list(accumulate(map(len, packs))))
        self.mixture = Mixture([len(packs)], seed=dataset.mixture.seed)
        logger.info(
            "packing: %d records in %d rows of %d positions, %.1f%% full",
            len(indices),
            len(packs),
            capacity,
            100 * sum(sequences.lengths) / (len(packs) * capacity),
        )
        if share_images:
            logger.info(
                "packing: records on the same picture share it: %d sequences, %.1f%% of all positions",
                len(sequences.lengths),
                100 * sum(sequences.lengths) / int(lengths.whole.sum()),
            )

    def __len__(self) -> int:
        return len(self._ends)

    def sequences(self, index: int) -> list[list[int]]:
        """The records of each sequence of a pack."""
        numbers = _between(self._sequences, self._ends, index)
        return [_between(self._records, self._sequence_ends, number) for number in numbers]

    def __getitem__(self, index: int) -> list[dict]:
        """The good samples of a pack; if all its records prove bad, those of the next pack."""
        index = range(len(self))[index]
        for step in range(len(self)):
            sequences = self.sequences((index + step) % len(self))
            good = [sample for records in sequences for sample in self._samples(records)]
            if good:
                return good
        raise BadRecord("There is no good record to pack: the bad ones are listed above.")

    def _samples(self, records: list[int]) -> list[dict]:
        """The good samples of a sequence. Of records that share a prefix, the first good one brings it."""
        samples: list[dict] = []
        for record in records:
            sample = self.dataset.read(record, branch=len(samples) + 1 if self.share_images else None)
            samples += [] if sample is None else [sample]
        return samples

    @property
    def bad_records(self) -> list[str]:
        return self.dataset.bad_records

    @property
    def num_truncated(self) -> int:
        return self.dataset.num_truncated


def _between(values: Tensor, ends: Tensor, index: int) -> list[int]:
    """The values of part `index`, given where each part ends."""
    start = int(ends[index - 1]) if index else 0
    return values[start : int(ends[index])].tolist()
