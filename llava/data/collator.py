"""Samples to one padded batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX


@dataclass
class Collator:
    """Pad samples of `SupervisedDataset` to the longest; the mask comes from lengths, not from the ids."""

    pad_token_id: int
    padding_side: str = "right"

    def __post_init__(self):
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}.")

    def __call__(self, samples: list[dict]) -> dict:
        """Collate B samples.

        Returns:
            input_ids long[B, T], labels long[B, T], attention_mask bool[B, T]; and, if any sample has an
            image, images in the order of their <image>, float[num_images, 3, H, W] or, if they are cut to
            tiles, a list of float[T, 3, H, W]; image_sizes [(width, height)].
        """
        pad = partial(pad_sequence, batch_first=True, padding_side=self.padding_side)
        input_ids = [sample["input_ids"] for sample in samples]
        masks = [torch.ones_like(ids, dtype=torch.bool) for ids in input_ids]
        batch = {
            "input_ids": pad(input_ids, padding_value=self.pad_token_id),
            "labels": pad([sample["labels"] for sample in samples], padding_value=IGNORE_INDEX),
            "attention_mask": pad(masks, padding_value=False),
        }
        images = [image for sample in samples for image in sample["images"]]
        if images:
            batch["images"] = torch.stack(images) if images[0].ndim == 3 else images
            batch["image_sizes"] = [size for sample in samples for size in sample["image_sizes"]]
        return batch
