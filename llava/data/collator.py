"""Collates samples into a batch, one or several to a row, with padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX
from llava.errors import UserError


@dataclass
class Collator:
    """Pads rows of `SampleBuilder` samples to the longest; the mask depends on lengths, not on the ids."""

    pad_token_id: int
    padding_side: str = "right"

    def __post_init__(self):
        if self.padding_side not in ("left", "right"):
            raise UserError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}.")

    def __call__(self, rows: list[dict] | list[list[dict]]) -> dict:
        """Collate B samples, or B packs (lists) of samples.

        Returns:
            input_ids long[B, T], labels long[B, T], attention_mask bool[B, T], record_names: list of str.
            If any sample has an image: images float[num_images, 3, H, W] in the order of their <image>, or a
            list of tensors if one has several views, and image_sizes [(width, height)]. For packs:
            sequence_ids long[B, T], the number of a token's sequence in its row from 0, -1 on padding. A
            sequence is a record, or several with a common prefix; then also branch_ids long[B, T], those of
            the samples, 0 on padding.
        """
        packs = [row if isinstance(row, list) else [row] for row in rows]
        samples = [sample for pack in packs for sample in pack]
        pad = partial(pad_sequence, batch_first=True, padding_side=self.padding_side)
        input_ids = [torch.cat([sample["input_ids"] for sample in pack]) for pack in packs]
        labels = [torch.cat(list(map(_labels, pack))) for pack in packs]
        batch = {
            "input_ids": pad(input_ids, padding_value=self.pad_token_id),
            "labels": pad(labels, padding_value=IGNORE_INDEX),
            "attention_mask": pad(
                [torch.ones_like(ids, dtype=torch.bool) for ids in input_ids], padding_value=False
            ),
            "record_names": [sample["name"] for sample in samples],
        }
        if isinstance(rows[0], list):
            batch["sequence_ids"] = pad([_sequence_ids(pack) for pack in packs], padding_value=-1)
        if "branch_ids" in samples[0]:
            branch_ids = [torch.cat([sample["branch_ids"] for sample in pack]) for pack in packs]
            batch["branch_ids"] = pad(branch_ids, padding_value=0)
        images = [image for sample in samples for image in sample["images"]]
        if images:
            has_one_view = all(image.ndim == 3 for image in images)
            batch["images"] = torch.stack(images) if has_one_view else images
            batch["image_sizes"] = [size for sample in samples for size in sample["image_sizes"]]
        return batch


def _starts_sequence(sample: dict) -> bool:
    """Whether a sample brings its own prefix, and does not continue the sequence of the sample before it."""
    return "branch_ids" not in sample or int(sample["branch_ids"][0]) == 0


def _labels(sample: dict) -> Tensor:
    """The labels, without that of a sequence's first token, which in a row would follow another sequence."""
    labels = sample["labels"].clone()
    if _starts_sequence(sample):
        labels[0] = IGNORE_INDEX
    return labels


def _sequence_ids(pack: list[dict]) -> Tensor:
    lengths = torch.tensor([len(sample["input_ids"]) for sample in pack])
    starts = torch.tensor([_starts_sequence(sample) for sample in pack])
    return (starts.cumsum(dim=0) - 1).repeat_interleave(lengths)
