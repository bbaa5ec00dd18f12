"""Exact lengths of records, and which of them begin alike: measured once for packing, and stored."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llava.data.dataset import SupervisedDataset
from llava.data.measure import exact_lengths_key, in_parallel
from llava.data.reader import ImageSource
from llava.data.record import BadRecord, Picture
from llava.data.sample import EncodedRecord

UNSHARED = -1  # the key of a record that shares its prefix with no other


class ExactLengths(NamedTuple):
    """What each of N records takes of a row.

    Attributes:
        whole: long[N], its positions in the model's input; 0 for a skipped bad record.
        prefix: long[N], those of its prefix, see `EncodedRecord.prefix_tokens`.
        keys: long[N], equal for records with the same prefix of the same pictures; UNSHARED if there is none.
    """

    whole: Tensor
    prefix: Tensor
    keys: Tensor


class _Measure:
    """Measures int64[N, 3] of a data set's records: the three numbers of ExactLengths.

    The first one is negative for a record that is cut, and 0 for a bad one.
    """

    def __init__(self, dataset: SupervisedDataset, first: int):
        self.dataset, self.first = dataset, first

    def __call__(self, rows: range) -> np.ndarray:
        return np.array([self._of(self.first + row) for row in rows], dtype=np.int64)

    def _of(self, index: int) -> tuple[int, int, int]:
        try:
            encoded, source_of = self.dataset.encode(index)
        except BadRecord:
            return 0, 0, UNSHARED
        length = -encoded.length if encoded.truncated else encoded.length
        return length, encoded.prefix_length, prefix_key(encoded, source_of)


def prefix_key(encoded: EncodedRecord, source_of: ImageSource) -> int:
    """A number from 0 to 2^63 - 1 for a record's prefix and the paths of its pictures.

    A picture that is stored in the file of records has no path, so its record is UNSHARED.
    """
    end = encoded.prefix_tokens
    if not end or any(isinstance(file, Picture) for file in encoded.files):
        return UNSHARED
    paths = [os.path.abspath(source_of(file)) for file in encoded.files]  # type: ignore[arg-type]
    content = repr((encoded.input_ids[:end], paths)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def exact_lengths(dataset: SupervisedDataset, num_workers: int = 0) -> ExactLengths:
    """Measure all records of a data set, or read what an earlier run has measured.

    Args:
        num_workers: processes for each rank that measure.
    Raises:
        BadRecord: for a bad record that is not to be skipped.
    """
    parts, first = [], 0
    for index in dataset.indices:
        measure = _Measure(dataset, first)

        def make(measure: _Measure = measure, num_records: int = len(index)) -> tuple[np.ndarray, list]:
            measured = in_parallel(measure, num_records, num_workers, "measuring records")
            return measured.reshape(-1, 3), []

        key = exact_lengths_key(index, dataset.builder, dataset.cache, num_workers)
        parts.append(dataset.cache.get(key, f"the exact lengths of {index.reader.path}", make).array)
        first += len(index)
    whole, prefix, keys = torch.from_numpy(np.concatenate(parts)).unbind(dim=1)
    dataset.note_truncated((whole < 0).nonzero().flatten())
    whole = whole.abs()
    for record in (whole == 0).nonzero().flatten().tolist():
        whole[record] = dataset.length(record)
    return ExactLengths(whole, prefix, keys)
