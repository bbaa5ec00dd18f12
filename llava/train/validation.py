"""Validation during training: the sets, each rank's share of them, when it is due, and the best step."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from llava.constants import IGNORE_INDEX
from llava.data.dataset import SupervisedDataset
from llava.data.shards import is_shards
from llava.errors import UserError
from llava.train.flags import DataArguments
from llava.train.loader import worker_options

METRICS = ("loss", "accuracy")


def set_names(paths: list[str]) -> list[str]:
    """A name for each set: its file's stem, with a running number if the name is already used."""
    names: list[str] = []
    for stem in (Path(path).stem.replace(":", "_") for path in paths):  # ":" is before a configuration's name
        numbered = (f"{stem}_{number}" for number in range(2, len(paths) + 2))
        names.append(stem if stem not in names else next(name for name in numbered if name not in names))
    return names


def check_validation(data: DataArguments, training) -> None:
    """Check the flags of validation, and complete metric_for_best_model to the full name of a metric.

    Raises:
        UserError: on a contradiction.
    """
    paths = data.eval_data_path or []
    evaluates = training.eval_strategy != IntervalStrategy.NO
    if evaluates and not paths:
        raise UserError("--eval_strategy needs records for the evaluation; add --eval_data_path FILE.")
    if paths and not evaluates:
        raise UserError(
            "--eval_data_path would have no effect; add --eval_strategy epoch, or --eval_strategy steps with "
            "--eval_steps N."
        )
    for path in paths:
        if is_shards(path):
            raise UserError(
                f"--eval_data_path {path}: tar shards are an endless stream, but an evaluation must end; "
                "give records of another kind."
            )
    if training.metric_for_best_model is None:
        return
    names = set_names(paths)
    choices = [f"eval_{name}_{metric}" for name in names for metric in METRICS]
    chosen = training.metric_for_best_model
    chosen = chosen if chosen.startswith("eval_") else f"eval_{chosen}"
    if chosen == "eval_loss" and len(names) == 1:  # transformers' value if none is given
        chosen = choices[0]
    if chosen not in choices:
        raise UserError(
            f"--metric_for_best_model must be one of {', '.join(choices)}, "
            f"got {training.metric_for_best_model}."
            if choices
            else "--metric_for_best_model needs an evaluation; add --eval_data_path and --eval_strategy."
        )
    training.metric_for_best_model = chosen


class Share(Dataset):
    """One rank's part of a set. Each rank has the same number of samples, and so the same number of batches.

    Samples that must not count have no labels: those beyond the end of the set, and those that replace a
    skipped bad record.
    """

    def __init__(self, records: SupervisedDataset, rank: int, world_size: int):
        self.records = records
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return math.ceil(len(self.records) / self.world_size)

    def __getitem__(self, position: int) -> dict:
        index = range(len(self))[position] * self.world_size + self.rank
        sample = self.records.read(index) if index < len(self.records) else None
        if sample is None:
            sample = self.records[index % len(self.records)]
            sample = {**sample, "labels": torch.full_like(sample["labels"], IGNORE_INDEX)}
        return sample


def eval_loader(records: SupervisedDataset, args, collator: Callable) -> DataLoader:
    """One rank's batches of a set, in the order of its file."""
    return DataLoader(
        Share(records, args.process_index, args.world_size),
        batch_size=args.eval_batch_size,
        **worker_options(args, collator),
        generator=torch.Generator(),  # a loader draws a seed, which must not change training's draws
    )


def token_metrics(sums: Tensor, prefix: str) -> dict[str, float]:
    """Mean cross-entropy and token accuracy of a set from its token_sums over all batches and ranks."""
    loss, num_tokens, num_right = sums.tolist()
    if not num_tokens:
        return {f"{prefix}_{metric}": math.nan for metric in METRICS}
    return {f"{prefix}_loss": loss / num_tokens, f"{prefix}_accuracy": num_right / num_tokens}


def is_due(args, state) -> bool:
    """Whether the model is evaluated after the current step: at every interval and at the last step."""
    is_last = state.global_step >= state.max_steps
    if args.eval_strategy == IntervalStrategy.STEPS:
        reached, done = state.global_step % state.eval_steps == 0, state.global_step
    elif args.eval_strategy == IntervalStrategy.EPOCH:
        reached, done = state.epoch == int(state.epoch), state.epoch
    else:
        return False
    return (reached or is_last) and args.eval_delay <= done


class Validation(TrainerCallback):
    """Decides when the model is evaluated, and records the best step.

    The evaluation always comes before the step's checkpoint, which thus holds the evaluation of its own step.
    If SIGTERM prevented an evaluation, the next start does it.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if args.eval_strategy == IntervalStrategy.NO:
            return
        state.compute_steps(args, state.max_steps)  # a checkpoint's state has the earlier run's intervals
        args.eval_on_start = args.eval_on_start and not state.global_step
        was_evaluated = any(
            row["step"] == state.global_step and any(name.startswith("eval_") for name in row)
            for row in state.log_history
        )
        if state.global_step and is_due(args, state) and not was_evaluated:
            self.trainer.evaluate()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = is_due(args, state)

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_evaluate = False  # it was done after the epoch's last step

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = metrics.get(args.metric_for_best_model, math.nan)
        if not state.global_step or not math.isfinite(value):
            return
        sign = 1 if args.greater_is_better else -1
        if state.best_metric is None or sign * value > sign * state.best_metric:
            state.best_metric, state.best_global_step = value, state.global_step
