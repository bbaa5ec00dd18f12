"""transformers' Trainer with LLaVA's batches, learning rates and checkpoints."""

import logging
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

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
from llava.train.extension import Extension
from llava.train.guard import RunStopped, StepGuard
from llava.train.step_log import StepLog
from llava.train.trainable import learning_rates, part_of
from llava.train.training_data import DataPosition, WithHostCopy, train_loader
from llava.train.validation import Validation, eval_loader, token_metrics
from llava.train.zero_checkpoint import WithoutFrozen

logger = logging.getLogger(__name__)

# Private methods of Trainer that are used here: why no public method suffices, and the test that would fail.
PRIVATE = {
    "_load_from_checkpoint": (
        "Trainer rejects a checkpoint that has only a projector or adapters, before it calls any hook.",
        "tests/e2e/test_training.py::"
        "test_a_killed_run_started_again_gives_the_uninterrupted_losses_and_weights",
    ),
    "_save_checkpoint": (
        "No hook is called before a checkpoint's first file, and none learns that a file was not written.",
        "tests/e2e/test_training.py::test_a_checkpoint_has_no_name_before_all_of_it_is_written",
    ),
}


class LlavaTrainer(Trainer):
    """Trainer for one training stage.

    Args:
        image_processor: saved with adapters and with whole models.
    """

    def __init__(self, *args, image_processor, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_collator = WithHostCopy(self.data_collator)
        self.add_callback(DataPosition())
        self.image_processor = image_processor
        self.folder_lock = ExitStack()  # set by train.prepare, and closed by train.train
        self.guard = StepGuard(self, self.args.max_nan_steps)
        self.step_log = StepLog(self, self.guard)
        self.add_callback(Extension())
        self.add_callback(Validation(self))
        self.add_callback(self.guard)  # after Validation, because it may put off an evaluation
        self.add_callback(self.step_log)  # after the guard, which may request a save or the end
        if self.is_deepspeed_enabled:
            self.add_callback(WithoutFrozen(self))

    def train(self, *args, **kwargs) -> TrainOutput:
        """Train, and replace Trainer's own mean loss, which includes the losses of skipped steps."""
        output = super().train(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def get_train_dataloader(self) -> DataLoader:
        loader = train_loader(self.train_dataset, self.args, self.data_collator)
        return loader if isinstance(self.train_dataset, ShardDataset) else self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator, num_batches, device) -> tuple[list, Tensor | int | None]:
        """If the run was killed after its last checkpoint, there are no steps left to train."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(self.step_log.waited_for(epoch_iterator), num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """With elastic budgets, each step has its own s. It is the same on all ranks and after a resume."""
        inputs = dict(inputs)
        record_names = inputs.pop("record_names")
        choices = self.model.config.elastic_scale_factors
        if choices:
            draw = random.Random(f"{self.args.seed} {self.state.global_step}")
            inputs["scale_factor"] = draw.choice(choices)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.see_loss(loss, record_names)
        self.step_log.count(inputs, len(record_names))
        return loss

    def get_eval_dataloader(self, eval_dataset: str) -> DataLoader:
        loader = eval_loader(self.eval_dataset[eval_dataset], self.args, self.data_collator)
        self.guard.sigterm.shield_workers(loader)
        return loader

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute loss and accuracy over all supervised tokens of a set.

        The host waits for the device only at the end, when it reads three sums.
        """
        self.callback_handler.eval_dataloader = dataloader  # the progress bar reads its length
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.double, device=self.args.device)
        for batch in dataloader:
            batch.pop("record_names")
            inputs = send_to_device(batch, self.args.device, non_blocking=self.args.dataloader_pin_memory)
            with torch.no_grad():
                sums += self.model(**inputs, sums_tokens=True).loss
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = token_metrics(self.accelerator.reduce(sums, "sum"), metric_key_prefix)
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset.records))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:
            logs["train_loss"] = self.step_log.mean_loss()
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        """Group parameters by part, which decides the learning rate, and by whether weight decay applies."""
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
        """Save only the projector, or adapters or the whole model with tokenizer and image processor."""
        model = self.accelerator.unwrap_model(self.model)
        saves_projector, saves_adapters = saving.saves_projector(model), saving.saves_adapters(model)
        learned, gathered = {}, None  # None: save_pretrained takes the model's own weights
        if saves_projector or saves_adapters:
            learned = saving.learned_state(model)
        elif self.is_deepspeed_enabled:
            gathered = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        if saves_projector:
            saving.save_projector(model, folder, learned)
            return
        if saves_adapters:
            saving.save_adapters(model, folder, learned)
        else:
            model.save_pretrained(folder, state_dict=gathered)
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

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint, which gets its name in one rename after every rank has written its part."""
        output_dir = Path(self.args.output_dir)
        name = f"{saving.CHECKPOINT_PREFIX}{self.state.global_step}"
        write = super()._save_checkpoint

        def write_into(staging: Path) -> None:
            self.args.output_dir = str(staging)
            try:
                write(model, trial)
            finally:
                self.args.output_dir = str(output_dir)
            if self.state.best_model_checkpoint is not None:
                # It names the staging folder, and Trainer would remove the newest checkpoint at the end
                self.state.best_model_checkpoint = None
                if self.args.should_save:
                    self.state.save_to_json(str(staging / name / saving.STATE_FILE))

        best, limit = self._best_name(), self.args.save_total_limit
        self._write(name, write_into)
        self._publish(name, lambda: saving.publish_checkpoint(output_dir, name, limit, best))

    def _best_name(self) -> str | None:
        """The name of the best checkpoint, which is kept; None if there is none or it is not asked for."""
        step = self.state.best_global_step
        return f"{saving.CHECKPOINT_PREFIX}{step}" if step and self.args.load_best_model_at_end else None

    def load_best(self) -> None:
        """With --load_best_model_at_end, load the weights of the best evaluation after training."""
        best = self._best_name()
        if best is None or self.state.best_global_step == self.state.global_step:
            return
        folder = Path(self.args.output_dir) / best
        if folder not in saving.checkpoints(self.args.output_dir):
            logger.warning(
                "%s, the best checkpoint, is missing: the result has the weights of the last step.", folder
            )
            return
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, str(folder))
        else:
            self._load_from_checkpoint(str(folder))
        logger.info(
            "the result has the weights of %s: %s %.4g",
            best,
            self.args.metric_for_best_model,
            self.state.best_metric,
        )

    def save_result(self) -> None:
        """Save the run's model in output_dir; trainer_state.json comes last and marks it as complete."""
        self.load_best()

        def write(staging: Path) -> None:
            self.save_model(str(staging), _internal_call=True)
            if self.is_world_process_zero():
                self.state.save_to_json(str(staging / saving.STATE_FILE))

        self._write("the result", write)
        self._publish("the result", lambda: saving.publish_result(Path(self.args.output_dir)))

    def _write(self, what: str, write: Callable[[Path], None]) -> None:
        """Have every rank write its part into the staging folder.

        Raises:
            RunStopped: see _attempt. Under DeepSpeed it is raised only on the rank that fails, because the
                others may be in DeepSpeed's own collectives; they end with that rank.
        """
        staging = Path(self.args.output_dir) / saving.STAGING
        if self.is_world_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._attempt(what, lambda: write(staging), together=not self.is_deepspeed_enabled)

    def _publish(self, what: str, publish: Callable[[], None]) -> None:
        """Have rank 0 give the written files their names, after every other node has synced what it wrote.

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
            RunStopped: on every rank if the action fails on one; without `together`, only there. Rank 0 then
                removes the staging folder.
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
