"""Padding on either side, and one list with the images of the whole batch."""

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.data.collator import Collator


def sample(length: int, num_images: int, start: int) -> dict:
    ids = torch.arange(start, start + length)
    return {
        "name": f"record {start}",
        "input_ids": ids,
        "labels": ids.clone(),
        "images": [torch.full((3, 2, 2), float(start + i)) for i in range(num_images)],
        "image_sizes": [(start + i, 5) for i in range(num_images)],
    }


@pytest.mark.parametrize(("side", "real"), [("right", slice(0, 2)), ("left", slice(2, 4))])
def test_pads_to_the_longest_on_the_side_asked_for(side, real):
    # the padding id also occurs as a real token, as in ChatML, where padding is the end of turn
    batch = Collator(pad_token_id=10, padding_side=side)([sample(2, 0, 10), sample(4, 0, 20)])
    assert batch["input_ids"][0, real].tolist() == [10, 11]
    assert batch["labels"][0, real].tolist() == [IGNORE_INDEX, 11]  # no token precedes the first
    padding = torch.ones(4, dtype=torch.bool)
    padding[real] = False
    assert set(batch["input_ids"][0, padding].tolist()) == {10}
    assert set(batch["labels"][0, padding].tolist()) == {IGNORE_INDEX}
    assert torch.equal(batch["attention_mask"][0], ~padding)
    assert batch["attention_mask"][1].all()
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["record_names"] == ["record 10", "record 20"]
    assert "images" not in batch
    assert "sequence_ids" not in batch
    assert "image_sizes" not in batch


def test_images_are_flat_in_order():
    batch = Collator(pad_token_id=0)([sample(2, 2, 10), sample(2, 0, 20), sample(2, 1, 30)])
    assert batch["images"].shape == (3, 3, 2, 2)
    assert batch["images"][:, 0, 0, 0].tolist() == [10, 11, 30]
    assert batch["image_sizes"] == [(10, 5), (11, 5), (30, 5)]


def test_views_of_an_image_stay_together():
    tiles = {**sample(2, 0, 20), "images": [torch.zeros(5, 3, 2, 2)], "image_sizes": [(9, 9)]}
    batch = Collator(pad_token_id=0)([sample(2, 1, 10), tiles])
    assert [image.shape for image in batch["images"]] == [(3, 2, 2), (5, 3, 2, 2)]
    assert batch["image_sizes"] == [(10, 5), (9, 9)]


@pytest.mark.parametrize(("side", "padding"), [("right", [5, 6]), ("left", [0, 1])])
def test_packs_share_a_row_and_no_record_predicts_the_next_ones_first_token(side, padding):
    packs = [[sample(2, 1, 10), sample(3, 0, 20)], [sample(3, 1, 30), sample(4, 0, 40)]]
    batch = Collator(pad_token_id=0, padding_side=side)(packs)
    real = [i for i in range(7) if i not in padding]
    assert batch["input_ids"][0, real].tolist() == [10, 11, 20, 21, 22]
    assert batch["labels"][0, real].tolist() == [IGNORE_INDEX, 11, IGNORE_INDEX, 21, 22]
    assert batch["sequence_ids"][0, real].tolist() == [0, 0, 1, 1, 1]
    assert batch["sequence_ids"][0, padding].tolist() == [-1, -1]
    assert batch["sequence_ids"][1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batch["record_names"] == ["record 10", "record 20", "record 30", "record 40"]
    assert batch["images"][:, 0, 0, 0].tolist() == [10, 30]


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="'left'.*'right'.*'up'"):
        Collator(0, "up")
