"""If the host reads a step's outcome one step later, as on GPUs, the run is the same and waits less."""

import json
import math
import sys

import pytest
import torch
from modes import trainer_of
from transformers import TrainerCallback

from llava.data.collator import Collator
from llava.train import saving
from llava.train.guard import RunStopped, StepGuard, leaves_out_steps
from llava.train.host_copy import HostCopy

BAD = {"per_device_train_batch_size": 1, "logging_steps": 1, "max_nan_steps": 3}


def train(parts, folder, lags: bool, monkeypatch, spoiled=(), **changes):
    """Train to the end; returns the trainer, and the rows of its log without values that depend on time."""
    monkeypatch.setattr(StepGuard, "lags_on_cpu", lags)
    with pytest.MonkeyPatch.context() as patch:
        if spoiled:
            spoil(patch, set(spoiled))
        trainer = trainer_of(parts, folder, **{**BAD, **changes})
        trainer.train()
    assert trainer.guard.lags == lags
    return trainer, rows(trainer.state.log_history)


def spoil(patch, numbers: set[int]) -> None:
    """Puts infinite pixels into these batches, counted from 1."""
    collate, count = Collator.__call__, [0]

    def spoiled(self, samples):
        batch = collate(self, samples)
        count[0] += 1
        if count[0] in numbers and "images" in batch:
            batch["images"] = batch["images"] * math.inf
        return batch

    patch.setattr(Collator, "__call__", spoiled)


def rows(history: list[dict]) -> list[dict]:
    kept = ("step", "epoch", "loss", "grad_norm", "learning_rate", "skipped_steps", "train_loss")
    return [{name: str(row[name]) for name in kept if name in row} for row in history]


@pytest.mark.parametrize(
    ("spoiled", "logging_steps"),
    [
        ((), 1),
        ((1, 2, 5), 1),
        pytest.param((2,), 3, marks=pytest.mark.transformers),
        ((6,), 3),
    ],
    ids=str,
)
def test_weights_and_log_are_those_of_a_run_that_waits(parts, tmp_path, monkeypatch, spoiled, logging_steps):
    runs = [
        train(
            parts, tmp_path / str(lags), lags, monkeypatch, spoiled, max_steps=6, logging_steps=logging_steps
        )
        for lags in (False, True)
    ]
    (waiting, expected), (lagging, logged) = runs
    assert logged == expected
    for name, value in waiting.model.state_dict().items():
        assert torch.equal(value, lagging.model.state_dict()[name]), name


@pytest.mark.parametrize("lags", [True, False])
def test_the_mean_loss_at_the_end_counts_no_step_that_was_left_out(parts, tmp_path, monkeypatch, lags):
    """It contains the last step's loss, which is in no log row."""
    monkeypatch.setattr(StepGuard, "lags_on_cpu", lags)
    spoil(monkeypatch, {2})
    trainer = trainer_of(parts, tmp_path, **{**BAD, "learning_rate": 0.0}, max_steps=3, logging_strategy="no")
    output = trainer.train()
    monkeypatch.undo()
    each = trainer_of(parts, tmp_path, **{**BAD, "learning_rate": 0.0}, max_steps=3)
    each.train()
    first, _, last = (row["loss"] for row in each.state.log_history if "loss" in row)
    assert output.training_loss == output.metrics["train_loss"] == pytest.approx((first + last) / 3)


def test_a_checkpoint_holds_the_log_up_to_its_step(parts, tmp_path, monkeypatch):
    changes = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9, "max_steps": 5}
    for lags in (False, True):
        train(parts, tmp_path / str(lags), lags, monkeypatch, **changes)
    for checkpoint in saving.checkpoints(tmp_path / "True"):
        states = [
            json.loads((tmp_path / lags / checkpoint.name / "trainer_state.json").read_text())
            for lags in ("False", "True")
        ]
        waiting, lagging = (rows(state["log_history"]) for state in states)
        assert lagging == waiting
        assert states[1]["global_step"] == int(checkpoint.name.split("-")[1])


def test_no_checkpoint_is_written_after_a_step_that_is_not_finite(parts, tmp_path, monkeypatch):
    changes = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9, "max_steps": 5}
    train(parts, tmp_path, True, monkeypatch, spoiled=(2,), **changes)
    assert [checkpoint.name for checkpoint in saving.checkpoints(tmp_path)] == [
        "checkpoint-4",
        "checkpoint-5",
    ]


def test_steps_in_a_row_end_the_run_a_step_later_and_name_their_records(parts, tmp_path, monkeypatch):
    trainer, logged = train(parts, tmp_path, True, monkeypatch, spoiled=(2, 3, 4), max_steps=30)
    assert trainer.state.global_step == 5
    assert [row["step"] for row in logged if "loss" in row] == ["1", "2", "3", "4", "5"]
    with pytest.raises(RunStopped, match=r"3 steps.*--max_nan_steps.*Records.*: "):
        trainer.guard.raise_if_stopped()


class Window(TrainerCallback):
    """Records whether the loop is between the begin of a step and its optimizer, and in which step."""

    def __init__(self):
        self.step, self.within = 0, False

    def on_step_begin(self, args, state, control, **kwargs):
        self.step, self.within = state.global_step + 1, True

    def on_optimizer_step(self, *args, **kwargs):
        self.within = False


OF_THE_LOOP = (
    "train/guard.py",
    "train/llava_trainer.py",
    "train/step_log.py",
    "transformers/trainer.py",
    "clip_grad.py",
    "/optim/",
)


@pytest.mark.parametrize("lags", [True, False])
def test_nothing_waits_ahead_of_the_optimizer_and_earlier_steps_are_read(parts, tmp_path, monkeypatch, lags):
    """The same count finds waits in a run without this delay."""
    monkeypatch.setattr(StepGuard, "lags_on_cpu", lags)
    window, waits, reads = Window(), [], []
    trainer = trainer_of(parts, tmp_path, **BAD, max_steps=6)
    trainer.callback_handler.callbacks.insert(0, window)
    begin, read = HostCopy.__init__, HostCopy.read

    def beginning(copy, values):
        begin(copy, values)
        copy.step = window.step

    def reading(copy):
        reads.append((copy.step, window.step))
        if window.within and copy.step == window.step:
            waits.append("read")
        return read(copy)

    def counted(method):
        def call(tensor, *args):
            caller = sys._getframe(1).f_code.co_filename
            if window.within and any(part in caller for part in OF_THE_LOOP):
                waits.append(caller)
            return method(tensor, *args)

        return call

    monkeypatch.setattr(HostCopy, "__init__", beginning)
    monkeypatch.setattr(HostCopy, "read", reading)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    trainer.train()
    assert {step for step, _ in reads} == set(range(1, 7))
    assert bool(waits) != lags
    assert all(made < now for made, now in reads if now < 6) == lags


def test_only_a_fused_adam_leaves_out_steps(parts, tmp_path):
    for name, leaves_out in {"adamw_torch_fused": True, "adamw_torch": False, "sgd": False}.items():
        trainer = trainer_of(parts, tmp_path / name, optim=name, max_steps=1)
        trainer.train()
        assert leaves_out_steps(trainer.optimizer) == leaves_out
