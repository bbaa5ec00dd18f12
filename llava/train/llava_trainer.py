"""transformers' Trainer with LLaVA's batches, learning rates and checkpoints."""

import math
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_pt_utils import nested_gather

from llava.data.stream import ShardDataset
from llava.model.adapters import load_adapters, load_trainables, read_trainables
from llava.model.checkpoint import (
    ADAPTER_CONFIG,
    PROJECTOR_FILE,
    TRAINABLES_FILE,
    load_projector,
    read_projector,
)
from llava.train import saving
from llava.train.guard import RunStopped, StepGuard
from llava.train.host_copy import HostCopy
from llava.train.throughput import Rates, Throughput
from llava.train.trainable import learning_rates, part_of
from llava.train.training_data import DataPosition, WithHostCopy, stream_loader, train_sampler


@dataclass
class PendingLog:
    """What a log will say of a step, its figures on their way to the host."""

    step: int
    epoch: float
    num_steps: int  # since the log before
    learning_rate: float
    loss_and_norm: HostCopy  # the sum of losses over these steps, and the last gradient's norm
    rates: Rates
    start_time: float


class LlavaTrainer(Trainer):
    """Args beside Trainer's:
    image_processor: saved with every model.
    """

    def __init__(self, *args, image_processor, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_collator = WithHostCopy(self.data_collator)
        self.add_callback(DataPosition())
        self.image_processor = image_processor
        self.folder_lock = ExitStack()  # set by who prepares a run, and closed by who ends it
        self._checkpoint_root: Path | None = None
        self._pending_log: PendingLog | None = None
        self.guard = StepGuard(self, self.args.max_nan_steps)
        self.throughput = Throughput(self)
        self.add_callback(self.guard)
        self.add_callback(self.throughput)

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        return train_sampler(self.train_dataset, self.args)

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, ShardDataset):
            return stream_loader(self.train_dataset, self.args, self.data_collator)
        return super().get_train_dataloader()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """With elastic budgets, each step has its own s: the same on all ranks, and again after a resume."""
        inputs = dict(inputs)
        record_names = inputs.pop("record_names")
        choices = self.model.config.elastic_scale_factors
        if choices:
            draw = random.Random(f"{self.args.seed} {self.state.global_step}")
            inputs["scale_factor"] = draw.choice(choices)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self.guard.see_loss(loss, record_names)
            self.throughput.count(inputs, len(record_names))
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.see_gradient(norm)
        return norm

    def _run_epoch(self, *args, **kwargs) -> None:
        """If the run was killed after its last checkpoint, there are no steps left to train."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None
    ) -> None:
        """Where the guard lags, a step's log is written while the device works on the next step."""
        state, control = self.state, self.control
        if self.guard.lags:
            if control.should_log and state.global_step > self._globalstep_last_logged:
                self._write_log()
                loss = nested_gather(tr_loss, self.args.parallel_mode).mean().reshape(1)
                if isinstance(grad_norm, torch.Tensor):
                    norm = grad_norm.detach().to(loss).reshape(1)
                else:  # DeepSpeed's; filled in on the device, for a copy would wait
                    norm = torch.full_like(loss, math.nan if grad_norm is None else grad_norm)
                self._pending_log = PendingLog(
                    step=state.global_step,
                    epoch=state.epoch,
                    num_steps=state.global_step - self._globalstep_last_logged,
                    learning_rate=self._get_learning_rate() if learning_rate is None else learning_rate,
                    loss_and_norm=HostCopy(torch.cat([loss, norm])),
                    rates=self.throughput.take(),
                    start_time=start_time,
                )
                tr_loss -= tr_loss
                self._globalstep_last_logged = state.global_step
                control.should_log = False
            ends = control.should_training_stop or state.global_step >= state.max_steps
            if ends or control.should_save or control.should_evaluate:
                self._write_log()
        super()._maybe_log_save_evaluate(
            *(tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time), learning_rate
        )

    def _write_log(self) -> None:
        """The log that is pending, if any, as of its own step."""
        pending, self._pending_log = self._pending_log, None
        if pending is None:
            return
        loss, norm = pending.loss_and_norm.read()
        self._total_loss_scalar += loss
        logs = {"loss": loss / pending.num_steps, "grad_norm": norm, "learning_rate": pending.learning_rate}
        if math.isnan(norm) and self.args.max_grad_norm <= 0:
            del logs["grad_norm"]
        now = self.state.global_step, self.state.epoch
        self.state.global_step, self.state.epoch = pending.step, pending.epoch
        try:
            self.store_flos()
            self.log(logs, pending.start_time, pending.rates)
        finally:
            self.state.global_step, self.state.epoch = now

    def log(
        self, logs: dict[str, float], start_time: float | None = None, rates: Rates | None = None
    ) -> None:
        """The loss is the mean over the steps that counted; rates and memory are those of all ranks.

        Args:
            rates: of the steps that are logged, by default those up to now.
        """
        if "loss" in logs:
            rates = rates or self.throughput.take()
            num_steps, skipped = rates.num_steps, self.guard.take_skipped(self.state.global_step)
            if skipped:
                logs["skipped_steps"] = skipped
                logs["loss"] = (
                    logs["loss"] * num_steps / (num_steps - skipped) if skipped < num_steps else math.nan
                )
            logs.update(rates.read())
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        """Groups by part, each with its learning rate, and by weight decay or not."""
        if self.optimizer is not None:
            return self.optimizer
        decayed = set(self.get_decay_parameter_names(self.model))
        groups: dict[tuple[str, bool], list] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((part_of(name), name in decayed), []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        rates = learning_rates(self.args)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                    "lr": rates[part],
                }
                for (part, decays), parameters in groups.items()
            ],
            **options,
        )
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Where not all is saved, what learns is all that is gathered; a whole model as Trainer does it."""
        model = self.accelerator.unwrap_model(self.model)
        if saving.saves_projector(model) or saving.saves_adapters(model):
            self._save(output_dir, saving.learned_state(model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The projector alone, or adapters, or all; with the latter two tokenizer and image processor."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        if saving.saves_projector(model):
            saving.save_projector(model, folder, state_dict)
            return
        if saving.saves_adapters(model):
            saving.save_adapters(model, folder, state_dict)  # type: ignore[arg-type]
        else:
            model.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        folder = Path(resume_from_checkpoint)
        if (folder / PROJECTOR_FILE).is_file():
            load_projector(self.model, read_projector(folder / PROJECTOR_FILE), str(folder))
        elif (folder / ADAPTER_CONFIG).is_file():
            load_adapters(self.model, folder)
            load_trainables(self.model, read_trainables(folder), str(folder / TRAINABLES_FILE), complete=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """DeepSpeed's checkpoints lack what is frozen, and Trainer would ask them for all."""
        under_deepspeed = self.is_deepspeed_enabled and resume_from_checkpoint is not None
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, None if under_deepspeed else resume_from_checkpoint
        )
        if under_deepspeed:
            deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Under DeepSpeed with the weights that learn; what is frozen is read anew at each start."""
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import DeepSpeedSchedulerWrapper

        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save and not isinstance(self.lr_scheduler, DeepSpeedSchedulerWrapper):
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _get_output_dir(self, trial=None) -> str:
        return str(self._checkpoint_root or self.args.output_dir)

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint appears under its name in one rename, when every rank has written its part."""
        output_dir = Path(self.args.output_dir)
        name = f"{saving.CHECKPOINT_PREFIX}{self.state.global_step}"
        write = super()._save_checkpoint
        self._checkpoint_root = output_dir / saving.STAGING
        try:
            self._write(name, lambda staging: write(model, trial))
        finally:
            self._checkpoint_root = None
        self._publish(name, lambda: saving.publish_checkpoint(output_dir, name, self.args.save_total_limit))

    def save_result(self) -> None:
        """The run's outcome in output_dir; its trainer_state.json comes last and says that all is there."""

        def write(staging: Path) -> None:
            self.save_model(str(staging), _internal_call=True)
            if self.is_world_process_zero():
                self.state.save_to_json(str(staging / saving.STATE_FILE))

        self._write("the result", write)
        self._publish("the result", lambda: saving.publish_result(Path(self.args.output_dir)))

    def _write(self, what: str, write: Callable[[Path], None]) -> None:
        """Write into the staging folder, every rank its part.

        Raises:
            RunStopped: see _attempt. Under DeepSpeed it is raised on the rank that fails alone, because the
                others may be in DeepSpeed's own collectives; they end with that rank.
        """
        staging = Path(self.args.output_dir) / saving.STAGING
        if self.is_world_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._attempt(what, lambda: write(staging), together=not self.is_deepspeed_enabled)

    def _publish(self, what: str, publish: Callable[[], None]) -> None:
        """Have rank 0 give names to what is written; every other node first syncs what its own ranks wrote.

        Raises:
            RunStopped: see _attempt.
        """
        staging = Path(self.args.output_dir) / saving.STAGING
        is_first = self.is_world_process_zero()
        is_another_node = self.is_local_process_zero() and not is_first
        self._attempt(what, lambda: saving.sync_tree(staging) if is_another_node else None)
        self._attempt(what, lambda: publish() if is_first else None)

    def _attempt(self, what: str, action: Callable[[], None], together: bool = True) -> None:
        """Run one part of a save on every rank and wait for all of them.

        Raises:
            RunStopped: on every rank if the action fails on one, with nothing left in the staging folder.
        """
        output_dir = Path(self.args.output_dir)
        failures = []
        try:
            action()
        except saving.WRITE_ERRORS as error:
            failures = [saving.describe_failure(what, error, output_dir)]
        if self.args.world_size > 1 and together:
            failures = gather_object(failures)
        if failures:
            if self.is_world_process_zero():
                shutil.rmtree(output_dir / saving.STAGING, ignore_errors=True)
            says_it = self.is_world_process_zero() or not together
            raise RunStopped(failures[0] if says_it else "", together=together)
        self.accelerator.wait_for_everyone()
