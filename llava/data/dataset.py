"""Records to training samples; bad ones fail the run or are counted and named, never dropped in silence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import template_named
from llava.data.record import BadRecord, describe_record, image_files, load_records, validate_record
from llava.data.targets import build_targets, conversation_from_record
from llava.mm_utils import get_aspect_ratio, image_size, load_image, process_images
from llava.tiling import TILED

logger = logging.getLogger(__name__)

NUM_LISTED = 20  # bad records named in one error
BAD, TRUNCATED = 1, 2  # bits kept for each record


def no_positions(size: tuple[int, int]) -> int:
    """Where the length of a sample does not matter."""
    return 0


class SupervisedDataset(Dataset):
    """LLaVA records as samples.

    Args:
        data_path: JSON or JSONL file of records (see `llava.data.record`).
        tokenizer: a fast one, of `load_tokenizer`.
        image_processor: a PIL one of transformers; None if no record has an image.
        image_folder: what image files are relative to; None if no record has an image.
        template: a name in `conv_templates`.
        image_config: what process_images reads how to prepare an image from; None is square.
        model_max_length: tokens, image tokens included; what is longer is cut at its end and counted.
        on_bad_record: "fail" raises; "skip" leaves out what is bad on disk, and puts the next good record in
            the place of what proves bad when it is read. Both are listed in `bad_records`.
        visual_positions: how many positions an image of (width, height) takes in the model's input.
        mm_use_im_start_end: put each image between <im_start> and <im_end>.
    Raises:
        BadRecord: on_bad_record "fail" and a record is bad: here for its form or a missing file, from
            `__getitem__` for an image that cannot be read or an answer beyond model_max_length. Also if no
            good record is left.
        ValueError: for the file itself, or an argument.
    """

    def __init__(
        self,
        data_path: str | Path,
        tokenizer,
        image_processor,
        image_folder: str | Path | None,
        template: str,
        image_config: object = None,
        model_max_length: int = 2048,
        on_bad_record: str = "fail",
        visual_positions: Callable[[tuple[int, int]], int] = no_positions,
        mm_use_im_start_end: bool = False,
    ):
        if on_bad_record not in ("fail", "skip"):
            raise ValueError(f"--on_bad_record must be 'fail' or 'skip', got {on_bad_record!r}.")
        self.data_path = data_path
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_folder = image_folder
        self.template = template
        self.image_config = image_config
        self.model_max_length = model_max_length
        self.on_bad_record = on_bad_record
        self.visual_positions = visual_positions
        self.mm_use_im_start_end = mm_use_im_start_end
        template_named(template, "--version")
        self.size_matters = get_aspect_ratio(image_config) in TILED
        self._read(load_records(data_path))

    def _read(self, records: list[dict]) -> None:
        """Keep the good records, packed: a list of objects would be copied into each worker as it is read."""
        packed, self.modality_lengths, self._sources, self._static_problems = [], [], [], []
        for source, record in enumerate(records):
            where = describe_record(self.data_path, source, record)
            try:
                self._check(record, where)
                length = self._signed_length(record, where)
            except BadRecord as error:
                self._static_problems.append(str(error))
                continue
            packed.append(json.dumps(record).encode())
            self._sources.append(source)
            self.modality_lengths.append(length)
        if self._static_problems and (self.on_bad_record == "fail" or not packed):
            raise BadRecord(self._summary())
        self._packed = b"".join(packed)
        self._ends = torch.tensor(list(accumulate(map(len, packed))), dtype=torch.long)
        self._sources = torch.tensor(self._sources, dtype=torch.long)
        # shared, so that what a worker process finds is known here as well
        self._flags = torch.zeros(len(packed), dtype=torch.uint8).share_memory_()

    def _check(self, record: dict, where: str) -> None:
        validate_record(record, where)
        files = image_files(record)
        if files and self.image_folder is None:
            raise BadRecord(f"{where}: it has an image but no folder was given; set --image_folder.")
        for file in files:
            if not (Path(self.image_folder) / file).is_file():
                raise BadRecord(
                    f"{where}: image file {Path(self.image_folder) / file} does not exist; "
                    "check --image_folder, or remove the record."
                )
        try:
            conversation_from_record(record, self.template, self.mm_use_im_start_end)
        except ValueError as error:
            raise BadRecord(f"{where}: {error}") from error

    def _signed_length(self, record: dict, where: str) -> int:
        """An estimate without tokenising: words and visual positions; negative for text only."""
        positions = self._positions(record, where)
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        return words + sum(positions) if positions else -words

    def _positions(self, record: dict, where: str) -> list[int]:
        """Of each image of a record; its file's head is read only if the size matters."""
        files = image_files(record)
        if not self.size_matters:
            return [self.visual_positions((1, 1))] * len(files)
        try:
            return [self.visual_positions(image_size(Path(self.image_folder) / file)) for file in files]
        except ValueError as error:
            raise BadRecord(f"{where}: {error}") from error

    def _summary(self) -> str:
        problems = self._static_problems
        listed = "\n  ".join(problems[:NUM_LISTED])
        more = f"\n  and {len(problems) - NUM_LISTED} more" if len(problems) > NUM_LISTED else ""
        remedy = "Correct them, or leave them out with --on_bad_record skip."
        return f"{len(problems)} bad record(s) in {self.data_path}:\n  {listed}{more}\n{remedy}"

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def lengths(self) -> list[int]:
        """Words and visual positions of each record, an estimate for grouping."""
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
        """One sample.

        Returns:
            input_ids long[T], labels long[T], images: for each <image> in input_ids a float[3, H, W], or its
            tiles float[T, 3, H, W]; image_sizes: their (width, height) before processing.
        """
        index = range(len(self))[index]  # IndexError past the end
        for candidate in (*range(index, len(self)), *range(index)):
            if self._flags[candidate] & BAD:
                continue
            try:
                return self._load(candidate)
            except BadRecord as error:
                if self.on_bad_record == "fail":
                    raise
                logger.warning("Skipped, the next good record takes its place: %s", error)
                self._flags[candidate] |= BAD
        raise BadRecord(f"No good record is left in {self.data_path}; the first: {self._problem(index)}")

    def _record(self, index: int) -> tuple[dict, str]:
        """A kept record and where it is."""
        start = int(self._ends[index - 1]) if index else 0
        record = json.loads(self._packed[start : int(self._ends[index])])
        return record, describe_record(self.data_path, int(self._sources[index]), record)

    def _problem(self, index: int) -> str:
        """What is wrong with a record that was found bad; found out anew, for messages are not kept."""
        try:
            self._load(index)
        except BadRecord as error:
            return str(error)
        return f"{self._record(index)[1]}: could not be read when it was needed, but now can; run again."

    def _load(self, index: int) -> dict:
        record, where = self._record(index)
        conversation = conversation_from_record(record, self.template, self.mm_use_im_start_end)
        ids, labels = build_targets(conversation, self.tokenizer)
        num_kept = self._num_within_limit(ids, self._positions(record, where))
        if num_kept < len(ids):
            self._flags[index] |= TRUNCATED
            ids, labels = ids[:num_kept], labels[:num_kept]
        if all(label == IGNORE_INDEX for label in labels):
            raise BadRecord(
                f"{where}: no word of an answer is within the first {self.model_max_length} tokens; "
                "raise --model_max_length, or shorten the record."
            )
        files = image_files(record)[: ids.count(IMAGE_TOKEN_INDEX)]
        images, sizes = self._load_images(files, where)
        return {
            "input_ids": torch.tensor(ids, dtype=torch.long),
            "labels": torch.tensor(labels, dtype=torch.long),
            "images": images,
            "image_sizes": sizes,
        }

    def _num_within_limit(self, ids: list[int], positions: list[int]) -> int:
        """How many leading ids fit in model_max_length, each <image> counting as its visual positions."""
        remaining = iter(positions)
        costs = (next(remaining) if token == IMAGE_TOKEN_INDEX else 1 for token in ids)
        return sum(total <= self.model_max_length for total in accumulate(costs))

    def _load_images(self, files: list[str], where: str) -> tuple[list[Tensor], list[tuple[int, int]]]:
        try:
            images = [load_image(Path(self.image_folder) / file) for file in files]
        except ValueError as error:
            raise BadRecord(f"{where}: {error}") from error
        pixels = process_images(images, self.image_processor, self.image_config) if images else []
        return list(pixels), [image.size for image in images]
