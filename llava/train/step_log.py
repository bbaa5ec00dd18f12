"""The log of a run: loss, gradient norm, learning rate, rates and memory, from one entry to the next."""

import math
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainerCallback

from llava.train.guard import StepGuard
from llava.train.host_copy import HostCopy
from llava.train.throughput import Rates, Throughput


@dataclass
class Entry:
    """What the log will say of a step, its figures on their way to the host.

    Attributes:
        loss_and_norm: the sum of the losses that count since the entry before, and the last gradient's norm.
    """

    step: int
    epoch: float
    learning_rate: float
    loss_and_norm: HostCopy
    rates: Rates


class StepLog(TrainerCallback):
    """Writes the log in Trainer's place, and is told when by Trainer's flags.

    An entry is of all ranks. Where the guard lags, it is written while the device works on the next step, so
    that nothing waits; ahead of a checkpoint and at the end it is written at once.
    """

    def __init__(self, trainer: Trainer, guard: StepGuard, throughput: Throughput):
        self.trainer = trainer
        self.guard = guard
        self.throughput = throughput
        self._pending: Entry | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step = state.global_step
        self._logged_loss = 0.0  # the sum over the steps that were logged

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._learning_rate = optimizer.param_groups[0]["lr"]  # the schedule goes on after this

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log and self.throughput.num_steps:
            self._write()
            self._pending = self._entry(state)
        control.should_log = False  # Trainer's own
        if not self.guard.lags or control.should_save or control.should_training_stop:
            self._write()

    on_epoch_end = on_step_end

    def mean_loss(self) -> float:
        """Of this start's steps, those included that no entry has; a step that was left out counts as 0."""
        self._write()
        total = self._logged_loss + self.guard.take_loss().item()
        return total / max(self.trainer.state.global_step - self._first_step, 1)

    def _entry(self, state) -> Entry:
        loss = self.trainer.accelerator.gather(self.guard.take_loss()).mean()
        return Entry(
            step=state.global_step,
            epoch=state.epoch,
            learning_rate=self._learning_rate,
            loss_and_norm=HostCopy(torch.stack([loss.double(), self.guard.gradient_norm.double()])),
            rates=self.throughput.take(),
        )

    def _write(self) -> None:
        """The pending entry, if any, as of its own step; the loss is the mean over the steps that count."""
        entry, self._pending = self._pending, None
        if entry is None:
            return
        loss, norm = entry.loss_and_norm.read()
        self._logged_loss += loss
        num_steps, skipped = entry.rates.num_steps, self.guard.take_skipped(entry.step)
        logs = {"loss": loss / num_steps, "grad_norm": norm, "learning_rate": entry.learning_rate}
        if skipped:
            logs["skipped_steps"] = skipped
            counted = num_steps - skipped
            logs["loss"] = logs["loss"] * num_steps / counted if counted > 0 else math.nan
        state = self.trainer.state
        now = state.global_step, state.epoch
        state.global_step, state.epoch = entry.step, entry.epoch
        try:
            self.trainer.log(logs | entry.rates.read())
        finally:
            state.global_step, state.epoch = now
