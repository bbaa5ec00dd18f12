"""A batch like those of training, for tests that search for waits for the device."""

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.collator import Collator
from llava.train.training_data import WithHostCopy


def batch(lengths=(6, 9)) -> dict:
    """A batch whose rows have one image each, and labels on the last two words."""
    rows = []
    for length in lengths:
        ids = torch.arange(5, 5 + length)
        ids[1] = IMAGE_TOKEN_INDEX
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[-2:] = ids[-2:]
        image = torch.randn(3, 56, 56)
        rows.append({"name": "", "input_ids": ids, "labels": labels, "images": [image], "image_sizes": [0]})
    collated = WithHostCopy(Collator(pad_token_id=0))(rows)
    return {name: collated[name] for name in ("input_ids", "labels", "attention_mask", "images", "on_host")}


def moved(values: dict, device) -> dict:
    """Moves a batch as Trainer does: only tensors are moved."""
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values.items()}
