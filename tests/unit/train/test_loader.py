"""The number of workers by cores and ranks; how long steps wait for data, and when a warning comes."""

from types import SimpleNamespace

import pytest

from llava.train import step_log
from llava.train.loader import loader_settings
from llava.train.step_log import FEWEST_STEPS, Entry, StepLog


@pytest.mark.parametrize(
    ("cores", "ranks", "accumulation", "expected"),
    [
        (1, 1, 1, (1, 2)),  # at least one worker
        (2, 2, 1, (1, 2)),
        (2, 1, 1, (1, 2)),
        (32, 8, 1, (3, 2)),
        (96, 8, 1, (8, 2)),
        (96, 8, 32, (8, 8)),  # the batches of two steps: 64
        (32, 8, 4, (3, 3)),
        (4, 8, 1, (1, 2)),
    ],
)
def test_a_rank_s_workers_are_its_share_of_the_cores_but_one(cores, ranks, accumulation, expected):
    assert loader_settings(cores, ranks, accumulation) == expected


@pytest.fixture
def log():
    args = SimpleNamespace(dataloader_num_workers=2, device="cpu")
    trainer = SimpleNamespace(args=args, is_world_process_zero=lambda: True)
    log = StepLog(trainer, guard=None)
    log.on_train_begin(args, SimpleNamespace(global_step=0), None)
    return log


def test_the_time_in_which_a_batch_comes_is_counted_and_no_other(log, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: clock[0])

    def slow():
        for number in range(3):
            clock[0] += 2.0
            yield number

    batches = slow()
    for number in range(2):  # as Trainer does, with a new iterator for each step
        assert next(log.waited_for(batches)) == number
        clock[0] += 5.0
    assert log._waited == 4.0
    assert list(log.waited_for(batches)) == [2]


def entry(step: int, num_steps: int, seconds: float) -> Entry:
    return Entry(step, 0.0, 0.0, num_steps, seconds, figures=None)


def test_a_run_whose_steps_wait_for_data_says_so_once(log, caplog):
    log._warn_of_waiting(
        entry(FEWEST_STEPS, FEWEST_STEPS, 10.0), 9.0
    )  # the steps in which the loader started
    for step in range(FEWEST_STEPS + 1, 3 * FEWEST_STEPS):
        assert caplog.text == ""
        log._warn_of_waiting(entry(step, 1, 1.0), 0.05 if step % 2 else 0.2)
        if step == 2 * FEWEST_STEPS:
            break
    assert "Up to step 40, 12% of the time of 20 steps was spent waiting for data." in caplog.text
    assert "Raise --dataloader_num_workers (NUM_WORKERS), now 2; this node has" in caplog.text
    caplog.clear()
    log._warn_of_waiting(entry(100, FEWEST_STEPS, 10.0), 9.0)
    assert caplog.text == ""


def test_a_run_that_seldom_waits_says_nothing(log, caplog):
    for step in range(1, 5 * FEWEST_STEPS):
        log._warn_of_waiting(entry(step, 1, 1.0), 9.0 if step == 1 else 0.0625)
    assert caplog.text == ""
