"""Whether an epoch fills a batch on every process, compared with accelerate's distribution."""

import logging
from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava.errors import UserError
from llava.train.training_data import check_batches


def dealt(num_samples: int, batch_size: int, world_size: int, drop_last: bool) -> list[list[list[int]]]:
    """The batches of one epoch on each process."""
    sampler = BatchSampler(range(num_samples), batch_size, drop_last)
    if world_size == 1:
        return [list(sampler)]
    return [list(BatchSamplerShard(sampler, world_size, rank)) for rank in range(world_size)]


def settings(batch_size: int, world_size: int, drop_last: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        train_batch_size=batch_size,
        per_device_train_batch_size=batch_size,
        world_size=world_size,
        dataloader_drop_last=drop_last,
        should_log=True,
    )


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
def test_what_drop_last_would_leave_without_a_batch_is_refused(num_samples, batch_size, world_size):
    has_batches = all(dealt(num_samples, batch_size, world_size, drop_last=True))
    try:
        check_batches(num_samples, "records", settings(batch_size, world_size, drop_last=True))
        refused = False
    except UserError:
        refused = True
    assert refused is not has_batches


@pytest.mark.parametrize("num_samples", range(1, 14))
@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 1), (1, 4), (2, 3)])
def test_samples_repeated_in_every_batch_are_said(num_samples, batch_size, world_size, caplog):
    first_pass = [batches[0] for batches in dealt(num_samples, batch_size, world_size, drop_last=False)]
    taken = [sample for batch in first_pass for sample in batch]
    with caplog.at_level(logging.WARNING):
        check_batches(num_samples, "records", settings(batch_size, world_size))
    assert ("repeats samples" in caplog.text) == (len(taken) > len(set(taken)))


def test_the_message_has_records_processes_batch_size_and_remedies():
    with pytest.raises(UserError) as refusal:
        check_batches(12, "records", settings(4, 8, drop_last=True))
    for part in (
        "12 records",
        "8 process(es)",
        "--per_device_train_batch_size 4",
        "32",
        "Leave it out, lower",
    ):
        assert part in str(refusal.value)
