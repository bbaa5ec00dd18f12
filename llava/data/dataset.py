"""Records of files as samples; bad ones fail the run or are counted and named, never dropped in silence."""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import Dataset

from llava.data.mixture import Mixture
from llava.data.files import iter_records
from llava.data.record import BadRecord, describe_record
from llava.data.sample import EncodedRecord, SampleBuilder, check_image_files
from llava.errors import UserError

logger = logging.getLogger(__name__)

NUM_LISTED = 20  # bad records named in one error
BAD, TRUNCATED = 1, 2  # bits kept for each record

T = TypeVar("T")


class SupervisedDataset(Dataset):
    """LLaVA records as samples, in the order of the files.

    Args:
        data_paths: JSON or JSONL files of records (see `llava.data.record`).
        builder: makes the samples.
        image_folder: what image files are relative to; None if no record has an image.
        weights, seed: of `mixture`, from which samplers draw an epoch; here each record is there once.
        on_bad_record: "fail" raises; "skip" leaves out what is bad on disk, and puts the next good record in
            the place of what proves bad when it is read. Both are listed in `bad_records`.
    Raises:
        BadRecord: on_bad_record "fail" and a record is bad: here for its form or a missing file, from
            `__getitem__` for an image that cannot be read or an answer beyond model_max_length. Also if no
            good record is left.
        UserError: for a file itself, or an argument.
    """

    def __init__(
        self,
        data_paths: Sequence[str | Path],
        builder: SampleBuilder,
        image_folder: str | Path | None = None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        on_bad_record: str = "fail",
    ):
        if on_bad_record not in ("fail", "skip"):
            raise UserError(f"--on_bad_record must be 'fail' or 'skip', got {on_bad_record!r}.")
        self.data_paths = list(data_paths)
        self.builder = builder
        self.image_folder = image_folder
        self.on_bad_record = on_bad_record
        self.mixture = Mixture(self._read(), weights, seed)

    def _read(self) -> list[int]:
        """Keep the good records, packed: a list of objects would be copied into each worker as it is read.

        Returns:
            How many each file has.
        """
        packed, ends, sources, sizes, self._static_problems = bytearray(), [], [], [], []
        for path in self.data_paths:
            num_before = len(ends)
            for source, record in enumerate(iter_records(path)):
                where = describe_record(path, source, record)
                try:
                    self.builder.check(record, where)
                    check_image_files(record, where, self.image_folder)
                except BadRecord as error:
                    self._static_problems.append(str(error))
                    continue
                packed += json.dumps(record).encode()
                ends.append(len(packed))
                sources.append(source)
            sizes.append(len(ends) - num_before)
        if self._static_problems and (self.on_bad_record == "fail" or not ends):
            raise BadRecord(self._summary())
        self._packed = bytes(packed)
        self._ends = torch.tensor(ends, dtype=torch.long)
        self._sources = torch.tensor(sources, dtype=torch.long)
        # shared, so that what a worker process finds is known here as well
        self._flags = torch.zeros(len(ends), dtype=torch.uint8).share_memory_()
        return sizes

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
        return len(self._ends)

    @cached_property
    def modality_lengths(self) -> list[int]:
        """An estimate for grouping, words and visual positions of each record; negative for text only."""
        estimates = (
            self._unless_bad(index, lambda i: self.builder.estimate(*self._record(i), self._source_of))
            for index in range(len(self))
        )
        return [1 if estimate is None else estimate for estimate in estimates]

    @property
    def lengths(self) -> list[int]:
        """`modality_lengths` without the modality."""
        return [abs(length) for length in self.modality_lengths]

    @property
    def bad_records(self) -> list[str]:
        """A message for each record left out so far, whether found on disk or, by any worker, on reading."""
        found = (self._flags & BAD).nonzero().flatten().tolist()
        return self._static_problems + [self._problem(index) for index in found]

    @property
    def num_truncated(self) -> int:
        """Records cut at model_max_length so far."""
        return int((self._flags & TRUNCATED).count_nonzero())

    def __getitem__(self, index: int) -> dict:
        """One sample, as `SampleBuilder.load` says; in the place of a bad one the next good one."""
        index = range(len(self))[index]  # IndexError past the end
        for candidate in (*range(index, len(self)), *range(index)):
            sample = self.read(candidate)
            if sample is not None:
                return sample
        raise BadRecord(f"No good record is left in {self._files}; the first: {self._problem(index)}")

    def read(self, index: int) -> dict | None:
        """This very record's sample; None if it is bad and to be skipped."""
        return self._unless_bad(index, self._load)

    def length(self, index: int) -> int:
        """Exact positions of a record in the model's input; 0 if it is bad and to be skipped."""
        encoded = self._unless_bad(index, self._encode)
        return 0 if encoded is None else encoded.length

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

    def _record(self, index: int) -> tuple[dict, str]:
        """A kept record and where it is."""
        start = int(self._ends[index - 1]) if index else 0
        record = json.loads(self._packed[start : int(self._ends[index])])
        path = self.data_paths[bisect_right(list(accumulate(self.mixture.sizes)), index)]
        return record, describe_record(path, int(self._sources[index]), record)

    def _source_of(self, file: str) -> Path:
        return Path(self.image_folder or "") / file

    def _problem(self, index: int) -> str:
        """What is wrong with a record that was found bad; found out anew, for messages are not kept."""
        try:
            self._load(index)
        except BadRecord as error:
            return str(error)
        return f"{self._record(index)[1]}: could not be read when it was needed, but now can; run again."

    def _encode(self, index: int) -> EncodedRecord:
        encoded = self.builder.encode(*self._record(index), self._source_of)
        if encoded.truncated:
            self._flags[index] |= TRUNCATED
        return encoded

    def _load(self, index: int) -> dict:
        return self.builder.load(self._encode(index), self._source_of)
