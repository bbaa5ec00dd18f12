"""The samplers' rules for any lengths, batch size and number of processes, with accelerate's distribution."""

from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava.data.mixture import Mixture
from llava.data.sampler import MixtureSampler, ModalityLengthGroupedSampler

lengths = st.lists(st.integers(1, 50).flatmap(lambda n: st.sampled_from([n, -n])), min_size=1, max_size=120)


def sampler(lengths, batch_size=2, world_size=2, seed=3):
    return ModalityLengthGroupedSampler(Mixture([len(lengths)], seed=seed), lengths, batch_size, world_size)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths=lengths, batch_size=st.integers(1, 4), world_size=st.integers(1, 3))
def test_every_index_once_and_at_most_one_mixed_megabatch(lengths, batch_size, world_size):
    order = list(sampler(lengths, batch_size, world_size))
    assert sorted(order) == list(range(len(lengths)))
    size = batch_size * world_size
    megabatches = [order[i : i + size] for i in range(0, len(order), size)]
    assert sum(len({lengths[i] > 0 for i in megabatch}) > 1 for megabatch in megabatches) <= 1
    assert order == list(sampler(lengths, batch_size, world_size))


def steps_of(order, batch_size, num_processes, accumulation):
    """The records of each optimiser step on all processes, as accelerate distributes a sampler's batches."""
    ranks = [
        list(BatchSamplerShard(BatchSampler(order, batch_size, drop_last=False), num_processes, rank))
        for rank in range(num_processes)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    return [
        [index for batches in ranks for batch in batches[start : start + accumulation] for index in batch]
        for start in range(0, len(ranks[0]), accumulation)
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    lengths=lengths,
    batch_size=st.integers(1, 3),
    num_processes=st.sampled_from([2, 4]),
    accumulation=st.integers(1, 3),
)
def test_each_steps_global_batch_has_one_modality_and_no_record_is_lost(
    lengths, batch_size, num_processes, accumulation
):
    order = sampler(lengths, batch_size, num_processes * accumulation)
    steps = steps_of(order, batch_size, num_processes, accumulation)
    size = batch_size * num_processes * accumulation
    num_whole = sum(count // size for count in Counter(length > 0 for length in lengths).values())
    for step in steps[:num_whole]:
        assert len(step) == size
        assert len({lengths[index] > 0 for index in step}) == 1
    dealt = Counter(index for step in steps for index in step)
    assert set(dealt) == set(range(len(lengths)))
    # accelerate completes the last round with batches from the start, and repeats nothing else
    assert dealt.total() - len(lengths) < max(batch_size * num_processes, 1)


@pytest.mark.parametrize(("num_processes", "accumulation"), [(2, 1), (4, 1), (4, 2)])
def test_each_steps_global_batch_has_similar_lengths(num_processes, accumulation):
    values = torch.randint(1, 1000, (1600,), generator=torch.Generator().manual_seed(0)).tolist()
    order = sampler(values, 4, num_processes * accumulation)
    steps = steps_of(order, 4, num_processes, accumulation)
    spreads = [max(values[i] for i in step) - min(values[i] for i in step) for step in steps]
    assert sum(spreads) / len(spreads) < 110  # for random batches it is 800 and more
    assert sorted(index for step in steps for index in step) == list(range(1600))


def test_seed_and_epoch_choose_the_order():
    values = list(range(1, 101))
    for build in (lambda seed: sampler(values, seed=seed), lambda seed: plain([100], seed=seed)):
        first = build(3)
        orders = [list(first)]
        first.set_epoch(1)
        orders += [list(first), list(build(4))]
        assert orders[0] != orders[1]
        assert orders[0] != orders[2]
        resumed = build(3)
        resumed.set_epoch(1)
        assert list(resumed) == orders[1]


def plain(sizes, weights=None, seed=0, **kwargs):
    return MixtureSampler(Mixture(sizes, weights, seed), **kwargs)


def test_without_shuffling_the_files_follow_one_another():
    assert list(plain([2, 3], shuffle=False)) == [0, 1, 2, 3, 4]
    assert list(plain([2, 3], [2, 1], shuffle=False)) == [0, 1, 0, 1, 2, 3, 4]


def test_a_batch_has_similar_lengths_and_batches_differ_between_epochs():
    values = torch.randint(1, 1000, (800,), generator=torch.Generator().manual_seed(0)).tolist()
    grouped = sampler(values, batch_size=8, world_size=1)

    def batches():
        order = list(grouped)
        return [order[i : i + 8] for i in range(0, 800, 8)]

    first = batches()
    spread = sum(max(values[i] for i in b) - min(values[i] for i in b) for b in first) / len(first)
    assert spread < 100  # for 8 random records it is about 780
    longest = [max(values[i] for i in b) for b in first]
    assert longest != sorted(longest, reverse=True)
    grouped.set_epoch(1)
    assert {frozenset(b) for b in first} != {frozenset(b) for b in batches()}


def test_each_process_gets_its_share_of_the_long():
    order = list(sampler([1, 2, 3, 4, 5, 6, 7, 8], batch_size=4, world_size=2))
    assert abs(sum(order[:4]) - sum(order[4:])) <= 4


def test_a_weighted_file_is_grouped_as_often_as_it_is_taken():
    mixture = Mixture([4, 4], [2, 0.5])
    order = list(ModalityLengthGroupedSampler(mixture, [3, 3, -2, -2, 5, 5, 5, 5], 2))
    assert Counter(order)[0] == Counter(order)[2] == 2
    assert len(order) == len(mixture) == 10


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="lengths.*0"):
        sampler([1, 0])
    with pytest.raises(ValueError, match="got 0 and 2"):
        sampler([1], batch_size=0)
