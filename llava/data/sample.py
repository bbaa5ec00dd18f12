"""Turns a record into a sample: checks, template, ids and labels, the cut at model_max_length, pixels.

The rules are the same for records from files and from streams of shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import template_named
from llava.data.reader import ImageSource
from llava.data.record import BadRecord, image_files, outside_files, validate_record
from llava.data.targets import build_targets, check_template, conversation_from_record
from llava.errors import UserError
from llava.mm_utils import get_aspect_ratio, image_size, input_side, load_image, process_images
from llava.textfile import absence, shown_name
from llava.tiling import TILED

DRAFT_MARGIN = 2  # with 1, pixels would differ three times as much


def check_record(record: Any, where: str, template: str) -> None:
    """Run all checks of a record that need no file to be opened. Raises BadRecord."""
    validate_record(record, where)
    try:
        check_template(record, template)
    except UserError as error:
        raise BadRecord(f"{where}: {error}") from error


def check_image_files(record: dict, where: str, image_folder: str | Path | None) -> None:
    """Check that a valid record's image files exist in the folder; skip pictures stored in the record's file.

    Raises BadRecord if one is missing, or if there are image files but no folder.
    """
    files = outside_files(record)
    if files and image_folder is None:
        raise BadRecord(
            f"{where}: it has an image, but --image_folder is missing; give the folder of the images."
        )
    for file in files:
        path = Path(image_folder) / file  # type: ignore[arg-type]
        if not os.path.isfile(path):  # Path.is_file() raises for names that are too long
            raise BadRecord(
                f"{where}: image file {shown_name(path)} {absence(path)}; "
                "check --image_folder, or remove the record."
            )


def load_images(
    files: list[str], where: str, source_of: ImageSource, shortest_side: int | None = None
) -> list[Image.Image]:
    """Read a record's images completely. Raises BadRecord.

    Args:
        shortest_side: see load_image.
    """
    return _named(where, lambda: [load_image(source_of(file), shortest_side=shortest_side) for file in files])


def _named(where: str, read: Callable[[], list]) -> list:
    try:
        return read()
    except UserError as error:
        raise BadRecord(f"{where}: {error}") from error


def integers(values: list[int]) -> Tensor:
    """long[T] of a list; numpy converts it in a third of the time that torch takes."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


@dataclass
class EncodedRecord:
    """The encoded text of a record, cut at model_max_length.

    Attributes:
        name: describes the record in messages.
        input_ids, labels: both of length T.
        files: image files, one for each <image> in input_ids.
        length: positions in the model's input, visual ones included.
        truncated: whether the record was cut.
        branch_ids: of length T, see `as_branch`; None for a record by itself.
    """

    name: str
    input_ids: list[int]
    labels: list[int]
    files: list[str]
    length: int
    truncated: bool
    branch_ids: list[int] | None = None

    @property
    def prefix_tokens(self) -> int:
        """How many tokens other records may share: those up to the last image, if none has a label; else 0.

        A label in a shared prefix would count once, and not once for each record.
        """
        if IMAGE_TOKEN_INDEX not in self.input_ids:
            return 0
        end = len(self.input_ids) - self.input_ids[::-1].index(IMAGE_TOKEN_INDEX)
        return 0 if any(label != IGNORE_INDEX for label in self.labels[:end]) else end

    @property
    def prefix_length(self) -> int:
        """The positions of those tokens in the model's input. Each token after them takes one position."""
        after = len(self.input_ids) - self.prefix_tokens
        return self.length - after if self.prefix_tokens else 0

    def as_branch(self, number: int) -> EncodedRecord:
        """Return the record as one of those that share its prefix in a sequence.

        Args:
            number: the record's number in the sequence, from 1. Only record 1 brings the prefix.
        Returns:
            A record whose branch_ids are 0 on the prefix and `number` on the other tokens. A record without a
            prefix that may be shared has only zeros.
        """
        prefix = self.prefix_tokens or len(self.input_ids)
        branch_ids = [0] * prefix + [number] * (len(self.input_ids) - prefix)
        if number == 1:
            return replace(self, branch_ids=branch_ids)
        return replace(
            self,
            input_ids=self.input_ids[prefix:],
            labels=self.labels[prefix:],
            files=[],
            length=len(self.input_ids) - prefix,
            branch_ids=branch_ids[prefix:],
        )


@dataclass
class SampleBuilder:
    """Makes samples of records.

    Args:
        tokenizer: a fast tokenizer from `load_tokenizer`.
        image_processor: a PIL image processor of transformers; None if no record has an image.
        template: a name in `conv_templates`.
        image_config: the config that `process_images` reads, with `image_aspect_ratio`.
        visual_positions: maps an image's (width, height) in pixels to the positions that it takes in the
            model's input. With square and pad the result is constant, and the argument is (1, 1).
        model_max_length: the most tokens of a sample, image tokens included; a longer one is cut at its end.
        mm_use_im_start_end: put each image between <im_start> and <im_end>.
        jpeg_draft: decode JPEG pictures at a half, a quarter or an eighth of their size, if each side then is
            at least DRAFT_MARGIN times the side of the tower's input.
    Raises:
        UserError: for an unknown template or image_aspect_ratio, or jpeg_draft with tiles.
    """

    tokenizer: object
    image_processor: object
    template: str
    image_config: object
    visual_positions: Callable[[tuple[int, int]], int]
    model_max_length: int = 2048
    mm_use_im_start_end: bool = False
    jpeg_draft: bool = False

    def __post_init__(self):
        template_named(self.template, "--version")
        self.is_tiled = get_aspect_ratio(self.image_config) in TILED
        if self.jpeg_draft and self.is_tiled:
            raise UserError(
                f"--jpeg_draft True: {' and '.join(TILED)} need the whole picture for tiles; leave it out."
            )
        self.shortest_side = DRAFT_MARGIN * input_side(self.image_processor) if self.jpeg_draft else None

    def check(self, record: Any, where: str) -> None:
        check_record(record, where, self.template)

    def estimate(self, record: dict, where: str, source_of: ImageSource) -> int:
        """Estimate the length as words plus visual positions, without tokenising; negative for text only."""
        words = sum(len(turn["value"].split()) for turn in record["conversations"])
        files = image_files(record)
        return words + sum(self._positions(files, where, source_of)) if files else -words

    def encode(self, record: dict, where: str, source_of: ImageSource) -> EncodedRecord:
        """Encode the text of a record that passed `check`. With tiles, image sizes are read from headers.

        Raises:
            BadRecord: if no word of an answer is left within model_max_length, or, with tiles, an image's
                header cannot be read.
        """
        conversation = conversation_from_record(record, self.template, self.mm_use_im_start_end)
        ids, labels = build_targets(conversation, self.tokenizer)
        files = image_files(record)
        positions = self._positions(files, where, source_of)
        length, num_kept = len(ids) - len(positions) + sum(positions), len(ids)
        if length > self.model_max_length:
            each = iter(positions)
            ends = list(accumulate(next(each) if token == IMAGE_TOKEN_INDEX else 1 for token in ids))
            num_kept = sum(end <= self.model_max_length for end in ends)
            length = ends[num_kept - 1]
        if all(label == IGNORE_INDEX for label in labels[:num_kept]):
            raise BadRecord(
                f"{where}: the first {self.model_max_length} tokens contain no word of an answer; "
                "raise --model_max_length, or shorten the record."
            )
        kept = ids[:num_kept]
        num_images = kept.count(IMAGE_TOKEN_INDEX)
        return EncodedRecord(where, kept, labels[:num_kept], files[:num_images], length, num_kept < len(ids))

    def load(self, encoded: EncodedRecord, source_of: ImageSource) -> dict:
        """Make a sample, reading its images.

        Returns:
            A dict of name: describes the record in messages; input_ids long[T]; labels long[T]; images: a
            list with float[3, H, W], or with tiles float[tiles, 3, H, W], for each <image> in input_ids;
            image_sizes: the images' (width, height) before processing. If the record is a branch, also
            branch_ids long[T].
        Raises:
            BadRecord: for an image that cannot be read.
        """
        images = load_images(encoded.files, encoded.name, source_of, self.shortest_side)
        pixels = process_images(images, self.image_processor, self.image_config) if images else []
        sample = {
            "name": encoded.name,
            "input_ids": integers(encoded.input_ids),
            "labels": integers(encoded.labels),
            "images": list(pixels),
            "image_sizes": [image.size for image in images],
        }
        if encoded.branch_ids is not None:
            sample["branch_ids"] = integers(encoded.branch_ids)
        return sample

    def _positions(self, files: list[str], where: str, source_of: ImageSource) -> list[int]:
        if not self.is_tiled:
            return [self.visual_positions((1, 1))] * len(files)
        sizes = _named(where, lambda: [image_size(source_of(file)) for file in files])
        return [self.visual_positions(size) for size in sizes]
