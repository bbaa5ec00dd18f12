"""Stops a run between two steps, after SIGTERM or repeated non-finite losses. All ranks decide alike."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from llava.train import saving
from llava.train.host_copy import HostCopy

logger = logging.getLogger(__name__)

PREEMPTED = 128 + signal.SIGTERM  # 143, which a shell reports for a process that SIGTERM ended
NUM_LISTED = 20  # records named in one message


class RunStopped(Exception):
    """The error of a run that ends early.

    Args:
        message: what happened and where the run goes on; empty on ranks that do not log.
        status: the process's exit status.
        together: whether all ranks end here; else others may wait for this one until the launcher ends them.
    """

    def __init__(self, message: str, status: int = 1, together: bool = True):
        super().__init__(message)
        self.status = status
        self.together = together


class SigtermNoted:
    """Within the block, SIGTERM is recorded but ends nothing. Schedulers send it before they kill a job."""

    def __init__(self):
        self.received = False
        self._is_within = multiprocessing.RawValue("b", False)  # in shared memory, for data workers

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, self._note)
        self._is_within.value = True
        return self

    def __exit__(self, *error):
        self._is_within.value = False
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, signum, frame):
        self.received = True

    def shield_workers(self, loader: DataLoader) -> None:
        """Have data workers ignore, within the block, a SIGTERM that is sent to the whole job."""
        loader.worker_init_fn = partial(_shield_worker, self._is_within, loader.worker_init_fn)


def _shield_worker(is_within, worker_init_fn, worker_id: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None if is_within.value else os._exit(0))
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


class StepGuard(TrainerCallback):
    """Skips steps whose loss or gradient is not finite. After a SIGTERM on any rank, it saves and stops.

    A skipped step changes no weight and no running statistic. No checkpoint is written right after one, and
    `max_nan_steps` of them in a row end the run. Under DeepSpeed, its own overflow check skips the step.
    Under fp16, a non-finite gradient does not count if the loss is finite: it is usual there, and the loss
    scaler handles it.

    One all-reduce a step joins the flags of all ranks. It replaces transformers' logging_nan_inf_filter,
    which waits for the device twice a batch and is switched off. On a GPU, if the optimizer can skip a step
    by itself, the host does not wait: the device acts on the flags, and the host reads them a step later.

    Attributes:
        lags: whether the host reads a step's flags only in the next step.
        loss_sum: float[] on the device, the losses of steps that were not skipped, since take_loss.
        gradient_norm: float[] on the device, that of the last step.
    """

    lags_on_cpu = False  # for tests

    def __init__(self, trainer: Trainer, max_nan_steps: int):
        self.trainer = trainer
        self.max_nan_steps = max_nan_steps
        self.sigterm = SigtermNoted()
        self.lags = False
        self.num_in_a_row = 0
        self._skipped: list[int] = []  # steps that no log entry has counted yet
        self._outcomes: list[StepOutcome] = []  # not yet read by the host
        self._preempted = False
        trainer.args.logging_nan_inf_filter = False
        # Before the optimizer's step, Trainer passes the norm that this returns to no callback
        self._clip = trainer.accelerator.clip_grad_norm_
        trainer.accelerator.clip_grad_norm_ = self._clip_and_keep_norm

    # ---- Called by LlavaTrainer, StepLog and train.run

    def see_loss(self, loss: Tensor, record_names: list[str]) -> None:
        """Record the loss of a batch, float[]. A step's loss is the sum over its one or several batches."""
        self.loss_sum += loss
        self._losses.append(loss.reshape(()))
        self._record_names.append(record_names)

    def take_loss(self) -> Tensor:
        """Return loss_sum and set it to zero."""
        taken, self.loss_sum = self.loss_sum, torch.zeros_like(self.loss_sum)
        return taken

    def take_skipped(self, step: int) -> int:
        """The number of steps up to this one that were skipped and not counted before."""
        counted = [skipped for skipped in self._skipped if skipped <= step]
        self._skipped = self._skipped[len(counted) :]
        return len(counted)

    def raise_if_stopped(self) -> None:
        """Check after training whether the run was stopped early.

        Raises:
            RunStopped: if SIGTERM or skipped steps stopped it.
        """
        if self._preempted:
            status, what = PREEMPTED, f"SIGTERM: stopped after step {self.trainer.state.global_step}"
        elif self.num_in_a_row >= self.max_nan_steps:
            status = 1
            what = (
                f"{self.num_in_a_row} steps in a row without a finite loss and gradient (--max_nan_steps "
                f"{self.max_nan_steps}); correct or remove bad records, or lower --learning_rate. "
                f"Records of the last such step: {self._names}"
            )
        else:
            return
        left = saving.what_is_left(self.trainer.args.output_dir)
        says_it = self.trainer.is_world_process_zero()
        raise RunStopped(f"{what}. The run is not complete. {left}" if says_it else "", status)

    # ---- Called by Trainer's training loop

    def on_train_begin(
        self, args, state, control, model=None, optimizer=None, train_dataloader=None, **kwargs
    ):
        self._statistics = running_statistics(model)
        self.loss_sum = torch.zeros((), device=args.device)
        self.sigterm.shield_workers(getattr(train_dataloader, "base_dataloader", train_dataloader))
        on_device = self.lags_on_cpu or args.device.type == "cuda"
        self.lags = on_device and not args.fp16 and (bool(args.deepspeed) or leaves_out_steps(optimizer))

    def on_step_begin(self, args, state, control, **kwargs):
        self._losses: list[Tensor] = []
        self._record_names: list[list[str]] = []
        self.gradient_norm: Tensor | None = None
        self._before = [value.clone() for value in (*self._statistics, self.loss_sum)]

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        flags = self._flags()
        outcome = StepOutcome(state.global_step + 1, HostCopy(flags), self._losses, self._record_names)
        self._outcomes.append(outcome)
        if self.lags:
            skip = flags[1]
            if not args.deepspeed:
                optimizer.optimizer.found_inf = skip
            self._restore(lambda now, before: torch.where(skip > 0, before, now))
            self._look(self._outcomes[:-1])
            return
        self._look(self._outcomes)
        if self.num_in_a_row:
            model.zero_grad()  # to None, so that the optimizer changes nothing, not even by weight decay
            self._restore(lambda now, before: before)

    def on_step_end(self, args, state, control, **kwargs):
        ends_itself = state.global_step >= state.max_steps
        if control.should_save or control.should_evaluate or ends_itself or self._is_over():
            self._look(self._outcomes)
        if self.num_in_a_row:
            control.should_save = control.should_evaluate = False
        self._preempted = self._preempted and not ends_itself
        if self._preempted:
            control.should_save = not self.num_in_a_row
            control.should_evaluate = False  # SIGTERM's sender may wait only for a save
        if self._is_over():
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        self._look(self._outcomes)
        if self.num_in_a_row:
            control.should_save = False

    def _is_over(self) -> bool:
        return self._preempted or self.num_in_a_row >= self.max_nan_steps

    def _clip_and_keep_norm(self, *args, **kwargs) -> Tensor | float | None:
        """Keep the norm, which is the same on every rank. DeepSpeed may compute none, which counts as 0."""
        norm = self._clip(*args, **kwargs)
        if isinstance(norm, Tensor) and norm.device == self.loss_sum.device:
            self.gradient_norm = norm.detach().reshape(())
        else:  # a number on the host is filled in on the device, because a copy would wait
            self.gradient_norm = torch.full_like(self.loss_sum, float(norm or 0), dtype=torch.double)
        return norm

    def _flags(self) -> Tensor:
        """float[2] on the device: whether SIGTERM came, and whether the step is not finite, on any rank."""
        not_finite = ~torch.stack(self._losses).isfinite().all()
        if not self.trainer.args.fp16:
            assert self.gradient_norm is not None, "Trainer no longer calls accelerator.clip_grad_norm_"
            not_finite = not_finite | ~self.gradient_norm.isfinite()
        flags = torch.stack([torch.full_like(not_finite, self.sigterm.received), not_finite]).float()
        if self.trainer.args.world_size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return flags

    def _restore(self, choose: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Set running statistics and loss_sum to what `choose` makes of their current and earlier values."""
        for now, before in zip([*self._statistics, self.loss_sum], self._before, strict=True):
            now.copy_(choose(now, before))

    def _look(self, outcomes: list["StepOutcome"]) -> None:
        """Read the outcomes of these steps, which are the same on all ranks."""
        for outcome in list(outcomes):
            self._outcomes.remove(outcome)
            sigterm, skip = outcome.flags.read()
            self._preempted = bool(sigterm)
            if self.num_in_a_row >= self.max_nan_steps:
                continue  # the run ends, whatever the later outcomes are
            if not skip:
                self.num_in_a_row = 0
                continue
            self.num_in_a_row += 1
            self._skipped.append(outcome.step)
            self._names = self._name_records(outcome)
            if self.trainer.is_world_process_zero():
                logger.warning(
                    "step %d left out: its loss or gradient is not finite (%d in a row): %s",
                    outcome.step,
                    self.num_in_a_row,
                    self._names,
                )

    def _name_records(self, outcome: "StepOutcome") -> str:
        """Name the records of batches whose loss is not finite; if all losses are finite, all of the step.

        A batch norm over ranks spreads non-finite values of one batch to the batches of all ranks.
        """
        finite = torch.stack(outcome.losses).isfinite().tolist()
        step = list(zip(outcome.record_names, finite, strict=True))
        guilty = [name for names, is_finite in step if not is_finite for name in names]
        everyone = [name for names, _ in step for name in names]
        if self.trainer.args.world_size > 1:
            guilty, everyone = gather_object(guilty), gather_object(everyone)
        names = guilty or everyone
        more = f"; and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
        return "; ".join(names[:NUM_LISTED]) + more


@dataclass(eq=False)
class StepOutcome:
    """What the guard records about a step.

    Attributes:
        flags: the result of StepGuard._flags.
        losses: float[] for each batch.
        record_names: the names of each batch's records.
    """

    step: int
    flags: HostCopy
    losses: list[Tensor]
    record_names: list[list[str]]


def leaves_out_steps(optimizer) -> bool:
    """Whether an optimizer reads found_inf, with which torch's fused Adam skips a step on the device.

    Args:
        optimizer: accelerate's wrapper.
    """
    plain = getattr(optimizer, "optimizer", None)
    return isinstance(plain, torch.optim.Adam) and bool(plain.defaults.get("fused"))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of batch norms, which an image with non-finite values would corrupt."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
