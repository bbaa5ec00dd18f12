"""The names of evaluation sets, each rank's share of a set, and the workers of a stream."""

from types import SimpleNamespace

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.train import training_data
from llava.train.validation import Share, set_names


def test_each_set_has_a_name_of_its_own():
    assert set_names(["a/val.json", "b/val.jsonl", "val_2.json", "c/val.json"]) == [
        "val",
        "val_2",
        "val_2_2",
        "val_3",
    ]


class Records:
    """Records of which some prove bad; the next good one replaces them."""

    def __init__(self, count: int, bad: set[int]):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def read(self, index: int):
        return None if index in self.bad else {"name": index, "labels": torch.tensor([IGNORE_INDEX, index])}

    def __getitem__(self, index: int):
        return next(self.read(i) for i in range(index, 2 * self.count) if i not in self.bad)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_over_all_ranks_each_good_record_is_counted_once_and_ranks_have_as_many_samples(world_size):
    shares = [Share(Records(7, bad={0, 4}), rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    samples = [share[position] for share in shares for position in range(len(share))]
    counted = [sample["name"] for sample in samples if (sample["labels"] != IGNORE_INDEX).any()]
    assert sorted(counted) == [1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    ("earlier", "shards", "expected"), [(None, 6, 3), (None, 1, 1), (None, 99, 8), (5, 6, 5)]
)
def test_a_stream_has_a_shard_for_each_worker_and_goes_on_with_those_it_had(
    monkeypatch, earlier, shards, expected
):
    monkeypatch.setattr(training_data, "earlier_workers", lambda folder: earlier)
    monkeypatch.setattr(training_data, "expand_all", lambda paths: [["shard"] * shards])
    data = SimpleNamespace(data_path=["shards"], data_weights=None)
    training = SimpleNamespace(output_dir="out", world_size=2, dataloader_num_workers=8)
    assert training_data.stream_workers(data, training) == expected
