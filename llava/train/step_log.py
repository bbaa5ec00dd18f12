"""Logs a run's loss, learning rate, speed and memory over all ranks, without waiting for the device."""

import logging
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainerCallback

from llava.train.guard import StepGuard
from llava.train.host_copy import HostCopy
from llava.train.loader import local_ranks, num_cores

logger = logging.getLogger(__name__)

MOST_WAITING = 0.1  # share of the time above which a warning is logged
FEWEST_STEPS = 20  # the fewest that a warning is based on


@dataclass
class Entry:
    """The log entry of the steps since the previous entry, while its figures are being copied to the host.

    Attributes:
        step, epoch, learning_rate: those of the last of these steps.
        seconds: the duration of these steps, without saves and evaluations.
        figures: the sum of the losses that count, averaged over ranks; the last gradient's norm; samples,
            visual tokens and text tokens of all ranks; the highest memory of any rank in GiB, and the longest
            wait for data of any rank in seconds.
    """

    step: int
    epoch: float
    learning_rate: float
    num_steps: int
    seconds: float
    figures: HostCopy


class StepLog(TrainerCallback):
    """Writes the log in place of Trainer, at the steps that Trainer's flags choose.

    Text tokens are those of input_ids, without padding and <image>; visual tokens are the positions of images
    in the language model's sequence. If the guard lags, an entry is written while the device works on the
    next step, so that nothing waits. Before a checkpoint or an evaluation, and at the end, it is written at
    once.
    """

    def __init__(self, trainer: Trainer, guard: StepGuard):
        self.trainer = trainer
        self.guard = guard
        self._pending: Entry | None = None
        self._has_warned = False

    def count(self, inputs: dict, num_samples: int) -> None:
        """Count a batch's samples and tokens. `inputs` is what the model gets, with input_ids long[B, T]."""
        is_text = inputs["input_ids"] >= 0  # placeholders are negative
        if "sequence_ids" in inputs:  # packed: padding belongs to no sequence
            is_text &= inputs["sequence_ids"] >= 0
        elif "attention_mask" in inputs:
            is_text &= inputs["attention_mask"].bool()
        model, scale_factor = self.trainer.model, inputs.get("scale_factor")
        visual = sum(model.visual_positions_of(size, scale_factor) for size in inputs.get("image_sizes", []))
        self._counts[0] += num_samples
        self._counts[1] += visual
        self._counts[2] += is_text.sum()

    def waited_for(self, batches: Iterator) -> Iterator:
        """Yield the same batches, and add up the time spent waiting for each."""
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - started
            yield batch

    def mean_loss(self) -> float:
        """The mean over all steps since this start, whether logged or not; a skipped step counts as 0."""
        self._write()
        total = self._logged_loss + self.guard.take_loss().item()
        return total / max(self.trainer.state.global_step - self._first_step, 1)

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step = state.global_step
        self._logged_loss = 0.0  # the sum over the steps that were logged
        self._looked_at = [0, 0.0, 0.0]  # steps, their seconds and their wait, for the warning
        self._reset()
        self._start_clock()

    def _reset(self) -> None:
        self._num_steps = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._counts = torch.zeros(3, dtype=torch.long, device=self.trainer.args.device)

    def _start_clock(self, *args, **kwargs) -> None:
        self._started = time.perf_counter()

    on_save = on_evaluate = _start_clock

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._learning_rate = optimizer.param_groups[0]["lr"]  # before the schedule changes it

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self._seconds += now - self._started
        self._started = now
        self._num_steps += 1
        self._log_if_due(state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._log_if_due(state, control)

    def _log_if_due(self, state, control) -> None:
        if control.should_log and self._num_steps:
            self._write()
            self._pending = self._take(state)
        control.should_log = False  # so that Trainer does not log as well
        if (
            not self.guard.lags
            or control.should_save
            or control.should_evaluate
            or control.should_training_stop
        ):
            self._write()

    def _take(self, state) -> Entry:
        """Make the entry of the steps up to now; all ranks must call this."""
        gather, norm = self.trainer.accelerator.gather, self.guard.gradient_norm
        assert norm is not None, "a step has ended without a gradient norm"
        loss = gather(self.guard.take_loss()).mean()
        # filled in on the device, because a copy would wait
        own = [torch.full_like(norm, value, dtype=torch.double) for value in (peak_memory(), self._waited)]
        ranks = gather(torch.cat([self._counts.double(), torch.stack(own)])).view(-1, 5)
        loss_and_norm = torch.stack([loss.double(), norm.double()])
        figures = HostCopy(torch.cat([loss_and_norm, ranks[:, :3].sum(dim=0), ranks[:, 3:].amax(dim=0)]))
        entry = Entry(
            state.global_step, state.epoch, self._learning_rate, self._num_steps, self._seconds, figures
        )
        self._reset()
        return entry

    def _write(self) -> None:
        """Log the pending entry, if any, under its own step; the loss is the mean of the steps that count."""
        entry, self._pending = self._pending, None
        if entry is None:
            return
        loss, norm, *counts, memory, waited = entry.figures.read()
        samples, visual, text = (count / max(entry.seconds, 1e-9) for count in counts)
        self._logged_loss += loss
        logs = {"loss": loss / entry.num_steps, "grad_norm": norm, "learning_rate": entry.learning_rate}
        if skipped := self.guard.take_skipped(entry.step):
            logs["skipped_steps"] = skipped
            counted = entry.num_steps - skipped
            logs["loss"] = logs["loss"] * entry.num_steps / counted if counted > 0 else math.nan
        logs |= {
            "samples_per_second": round(samples, 3),
            "visual_tokens_per_second": round(visual, 1),
            "text_tokens_per_second": round(text, 1),
            "data_wait_share": round(min(waited / max(entry.seconds, 1e-9), 1.0), 4),
            "peak_memory_gib": round(memory, 3),
        }
        self._warn_of_waiting(entry, waited)
        state = self.trainer.state
        now = state.global_step, state.epoch
        state.global_step, state.epoch = entry.step, entry.epoch
        try:
            self.trainer.log(logs)
        finally:
            state.global_step, state.epoch = now

    def _warn_of_waiting(self, entry: Entry, waited: float) -> None:
        """Warn once of long waits for data. The first entry is left out, as its steps start the loader."""
        if entry.step - entry.num_steps > self._first_step:
            new = entry.num_steps, entry.seconds, waited
            self._looked_at = [old + more for old, more in zip(self._looked_at, new, strict=True)]
        steps, seconds, total = self._looked_at
        if steps < FEWEST_STEPS:
            return
        self._looked_at = [0, 0.0, 0.0]
        if total <= MOST_WAITING * seconds or self._has_warned or not self.trainer.is_world_process_zero():
            return
        self._has_warned = True
        logger.warning(
            "Up to step %d, %.0f%% of the time of %d steps was spent waiting for data. Raise "
            "--dataloader_num_workers (NUM_WORKERS), now %d; this node has %d cores for %d process(es).",
            *(entry.step, 100 * total / seconds, steps),
            *(self.trainer.args.dataloader_num_workers, num_cores(), local_ranks()),
        )


def peak_memory() -> float:
    """The most memory in GiB that this process has held: of the GPU if it has one, else main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
