"""Padding on either side, and images flat over the batch."""

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator


def sample(length: int, num_images: int, start: int) -> dict:
    ids = torch.arange(start, start + length)
    return {
        "input_ids": ids,
        "labels": ids.clone(),
        "images": [torch.full((3, 2, 2), float(start + i)) for i in range(num_images)],
        "image_sizes": [(start + i, 5) for i in range(num_images)],
    }


@pytest.mark.parametrize(("side", "real"), [("right", slice(0, 2)), ("left", slice(2, 4))])
def test_pads_to_the_longest_on_the_side_asked_for(side, real):
    # the padding id also occurs as a real token, as in ChatML, where padding is the end of turn
    batch = Collator(pad_token_id=10, padding_side=side)([sample(2, 0, 10), sample(4, 0, 20)])
    assert batch["input_ids"][0, real].tolist() == batch["labels"][0, real].tolist() == [10, 11]
    padding = torch.ones(4, dtype=torch.bool)
    padding[real] = False
    assert set(batch["input_ids"][0, padding].tolist()) == {10}
    assert set(batch["labels"][0, padding].tolist()) == {IGNORE_INDEX}
    assert torch.equal(batch["attention_mask"][0], ~padding)
    assert batch["attention_mask"][1].all()
    assert batch["attention_mask"].dtype == torch.bool
    assert "images" not in batch
    assert "image_sizes" not in batch


def test_images_are_flat_in_order():
    batch = Collator(pad_token_id=0)([sample(2, 2, 10), sample(2, 0, 20), sample(2, 1, 30)])
    assert batch["images"].shape == (3, 3, 2, 2)
    assert batch["images"][:, 0, 0, 0].tolist() == [10, 11, 30]
    assert batch["image_sizes"] == [(10, 5), (11, 5), (30, 5)]


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="must be 'left' or 'right', got 'up'"):
        Collator(0, "up")
