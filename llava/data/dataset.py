"""A data set of samples from files of records. Bad records fail the run or are skipped, counted and named."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava.data.index import CHECKS, open_index
from llava.data.kept import ArrayCache
from llava.data.measure import estimates
from llava.data.mixture import Mixture
from llava.data.reader import ImageSource
from llava.data.record import BadRecord
from llava.data.sample import EncodedRecord, SampleBuilder
from llava.errors import UserError

logger = logging.getLogger(__name__)

NUM_LISTED = 20  # bad records named in one error
BAD, TRUNCATED = 1, 2  # flag bits of each record

T = TypeVar("T")


class SupervisedDataset(Dataset):
    """LLaVA records as samples, in the order of the files.

    Args:
        data_paths: paths for which `llava.data.files` has a reader.
        builder: makes the samples.
        image_folder: the folder to which image paths are relative; None if no record has an image.
        weights, seed: passed to `mixture`, from which samplers draw an epoch; the data set itself holds each
            record once.
        on_bad_record: "fail" raises an error. "skip" leaves out records that the index finds bad; a record
            that proves bad when it is read is replaced by the next good one. `bad_records` lists both kinds.
        index_folder: stores what is computed once from the files (see `llava.data.kept`); None: the user's
            cache folder.
        num_workers: processes that open image headers, if lengths depend on them.
        check_images: "start" looks for all image files when an index is made; "lazy" only when one is read.
    Raises:
        BadRecord: if on_bad_record is "fail" and a record is bad. The constructor raises it for a record's
            form or a missing file, `__getitem__` for an image that cannot be read or an answer beyond
            model_max_length. Both raise it if no good record is left.
        UserError: for an error in a file as a whole, or in an argument.
    """

    def __init__(
        self,
        data_paths: Sequence[str | Path],
        builder: SampleBuilder,
        image_folder: str | Path | None = None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        on_bad_record: str = "fail",
        index_folder: str | Path | None = None,
        check_images: str = "start",
        num_workers: int = 0,
    ):
        if on_bad_record not in ("fail", "skip"):
            raise UserError(f"--on_bad_record must be 'fail' or 'skip', got {on_bad_record!r}.")
        if check_images not in CHECKS:
            raise UserError(f"--check_images must be 'start' or 'lazy', got {check_images!r}.")
        self.data_paths = list(data_paths)
        self.image_folder = image_folder
        self.builder = builder
        self.on_bad_record = on_bad_record
        self.num_workers = num_workers
        self.cache = ArrayCache(index_folder)
        self.indices = [
            open_index(path, builder.template, image_folder, self.cache, check_images)
            for path in self.data_paths
        ]
        sizes = [len(index) for index in self.indices]
        self._ends = list(accumulate(sizes))
        self._static_problems = [problem for index in self.indices for problem in index.problems]
        if self._static_problems and (on_bad_record == "fail" or not sum(sizes)):
            raise BadRecord(self._summary())
        # shared, so that this process also sees the flags that a worker process sets
        self._flags = torch.zeros(sum(sizes), dtype=torch.uint8).share_memory_()
        self.mixture = Mixture(sizes, weights, seed)

    def _summary(self) -> str:
        problems = self._static_problems
        listed = "\n  ".join(problems[:NUM_LISTED])
        more = f"\n  and {len(problems) - NUM_LISTED} more" if len(problems) > NUM_LISTED else ""
        remedy = "Correct them, or leave them out with --on_bad_record skip."
        return f"{len(problems)} bad record(s) in {self._files}:\n  {listed}{more}\n{remedy}"

    @property
    def _files(self) -> str:
        return ", ".join(map(str, self.data_paths))

    def __len__(self) -> int:
        return self._ends[-1]

    @cached_property
    def modality_lengths(self) -> Tensor:
        """long[N]: estimated lengths for grouping (words plus visual positions); negative for text only."""
        parts = [estimates(index, self.builder, self.cache, self.num_workers) for index in self.indices]
        lengths = torch.from_numpy(np.concatenate(parts))
        for index in ((lengths == 0) | (self._flags & BAD).bool()).nonzero().flatten().tolist():
            estimate = self._unless_bad(index, lambda i: self.builder.estimate(*self._record(i)))
            lengths[index] = 1 if estimate is None else estimate
        return lengths

    @property
    def lengths(self) -> Tensor:
        """The absolute values of `modality_lengths`, which do not show the modality."""
        return self.modality_lengths.abs()

    @property
    def bad_records(self) -> list[str]:
        """A message for each record skipped so far, whether the index or a worker found that it is bad."""
        found = (self._flags & BAD).nonzero().flatten().tolist()
        return self._static_problems + [self._problem(index) for index in found]

    @property
    def num_truncated(self) -> int:
        """The number of records cut at model_max_length so far."""
        return int((self._flags & TRUNCATED).count_nonzero())

    def __getitem__(self, index: int) -> dict:
        """Return a sample in the format of `SampleBuilder.load`; if it is bad, the next good one."""
        index = range(len(self))[index]  # IndexError past the end
        for step in range(len(self)):
            sample = self.read((index + step) % len(self))
            if sample is not None:
                return sample
        raise BadRecord(f"All records of {self._files} are bad. One of them: {self._problem(index)}")

    def read(self, index: int, branch: int | None = None) -> dict | None:
        """Return the sample of exactly this record; None if it is bad and to be skipped.

        Args:
            branch: the record's number among those that share its prefix, see `EncodedRecord.as_branch`.
        """
        return self._unless_bad(index, partial(self._load, branch=branch))

    def length(self, index: int) -> int:
        """The exact number of a record's positions in the model's input; 0 if it is bad and to be skipped."""
        encoded = self.encoded(index)
        return 0 if encoded is None else encoded.length

    def encoded(self, index: int) -> EncodedRecord | None:
        """Return a record's encoded text, without pixels; None if it is bad and to be skipped."""
        encoded = self._unless_bad(index, self.encode)
        return None if encoded is None else encoded[0]

    def _unless_bad(self, index: int, make: Callable[[int], T]) -> T | None:
        if self._flags[index] & BAD:
            return None
        try:
            return make(index)
        except BadRecord as error:
            if self.on_bad_record == "fail":
                raise
            logger.warning("Skipped: %s", error)
            self._flags[index] |= BAD
            return None

    def _record(self, index: int) -> tuple[dict, str, ImageSource]:
        """Return a record, its description for messages, and the function that finds its image files."""
        file = bisect_right(self._ends, index)
        of_file = self.indices[file]
        record, where, place = of_file.read(index - (self._ends[file - 1] if file else 0))
        return record, where, of_file.reader.source_of(place)

    def _problem(self, index: int) -> str:
        """The error of a bad record. The record is read again, since messages are not stored."""
        try:
            self._load(index)
        except BadRecord as error:
            return str(error)
        return (
            f"{self._record(index)[1]}: could not be read when it was needed, but can be read now; run again."
        )

    def encode(self, index: int) -> tuple[EncodedRecord, ImageSource]:
        """Return a record's encoded text and the function that finds its image files. Raises BadRecord."""
        record, where, source_of = self._record(index)
        encoded = self.builder.encode(record, where, source_of)
        if encoded.truncated:
            self._flags[index] |= TRUNCATED
        return encoded, source_of

    def note_truncated(self, indices: Tensor) -> None:
        """Mark records as cut, given their indices, long[...], which an earlier run found."""
        self._flags[indices] |= TRUNCATED

    def _load(self, index: int, branch: int | None = None) -> dict:
        encoded, source_of = self.encode(index)
        return self.builder.load(encoded if branch is None else encoded.as_branch(branch), source_of)
