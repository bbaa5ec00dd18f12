"""The sampler's promises, for any lengths, batch and number of processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.sampler import ModalityLengthGroupedSampler

lengths = st.lists(st.integers(1, 50).flatmap(lambda n: st.sampled_from([n, -n])), max_size=120)


def sampler(lengths, batch_size=2, world_size=2, seed=3):
    return ModalityLengthGroupedSampler(lengths, batch_size, world_size, torch.Generator().manual_seed(seed))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths=lengths, batch_size=st.integers(1, 4), world_size=st.integers(1, 3))
def test_every_index_once_and_at_most_one_mixed_megabatch(lengths, batch_size, world_size):
    order = list(sampler(lengths, batch_size, world_size))
    assert sorted(order) == list(range(len(lengths)))
    size = batch_size * world_size
    megabatches = [order[i : i + size] for i in range(0, len(order), size)]
    assert sum(len({lengths[i] > 0 for i in megabatch}) > 1 for megabatch in megabatches) <= 1
    assert order == list(sampler(lengths, batch_size, world_size))


def test_seed_and_epoch_choose_the_order():
    values = list(range(1, 101))
    first = sampler(values)
    orders = [list(first)]
    first.set_epoch(1)
    orders += [list(first), list(sampler(values, seed=4))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    resumed = sampler(values)
    resumed.set_epoch(1)
    assert list(resumed) == orders[1]


def test_a_batch_has_similar_lengths_and_batches_differ_between_epochs():
    values = torch.randint(1, 1000, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    grouped = sampler(values, batch_size=8, world_size=1)

    def batches():
        order = list(grouped)
        return [order[i : i + 8] for i in range(0, 800, 8)]

    first = batches()
    spread = sum(max(values[i] for i in b) - min(values[i] for i in b) for b in first) / len(first)
    assert spread < 100  # of 8 random ones it is about 780
    longest = [max(values[i] for i in b) for b in first]
    assert longest != sorted(longest, reverse=True)
    grouped.set_epoch(1)
    assert {frozenset(b) for b in first} != {frozenset(b) for b in batches()}


def test_each_process_gets_its_share_of_the_long():
    order = list(sampler([1, 2, 3, 4, 5, 6, 7, 8], batch_size=4, world_size=2))
    assert abs(sum(order[:4]) - sum(order[4:])) <= 4


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="lengths must not be 0"):
        sampler([1, 0])
    with pytest.raises(ValueError, match="got 0 and 2"):
        sampler([1], batch_size=0)
