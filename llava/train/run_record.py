"""The files that a run writes beside its weights: run.json, metrics.jsonl and loss.png."""

import dataclasses
import importlib.metadata
import io
import json
import logging
import math
import platform
import subprocess
import sys
from collections.abc import Sequence, Sized
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

import llava
from llava.train import saving
from llava.train.extension import finished_steps
from llava.train.trainable import part_of
from llava.wholefile import write_bytes, write_text

logger = logging.getLogger(__name__)

RUN_FILE, METRICS_FILE, CURVE_FILE = "run.json", "metrics.jsonl", "loss.png"
SMOOTHING = 20  # number of logged losses in the curve's running mean
PACKAGES = ("llava", "torch", "transformers", "accelerate", "deepspeed", "peft")


class RunRecord(TrainerCallback):
    """Has rank 0 write these files. If one cannot be written, a warning says so, and the run goes on.

    Args:
        model_args, data_args: the parsed flags; the training flags come from the trainer.
        dataset: the training data, which counts its bad and truncated records.
        eval_sets: maps names to evaluation sets, which count theirs too.
    """

    def __init__(self, model_args, data_args, dataset, eval_sets):
        self.model_args = model_args
        self.data_args = data_args
        self.dataset = dataset
        self.eval_sets = eval_sets

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._first_step = state.global_step
        if state.is_world_process_zero:
            self._write(self._describe_run, args, state, model)
            self._write(rewrite_metrics, args, state)

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero and is_metrics(state.log_history[-1]):
            self._write(append_metrics, args, state)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            self._write(self._describe_run, args, state, model)
            self._write(draw_loss, args, state)

    def _write(self, write, args, *rest) -> None:
        try:
            write(args, *rest)
        except OSError as error:
            logger.warning("%s: %s; the run continues without this file.", args.output_dir, error)

    def _describe_run(self, args, state, model: nn.Module) -> None:
        description = {
            "command": sys.argv,
            "versions": versions(),
            "git_commit": git_commit(),
            "world_size": args.world_size,
            "device": device_name(),
            "started_from_step": self._first_step,
            "extended_from": finished_steps(args.output_dir),
            "step": state.global_step,
            "max_steps": state.max_steps,
            "parameters": count_parameters(model),
            "data": describe_data(self.data_args.data_path, self.dataset),
            "eval_data": {
                name: describe_data(each.data_paths, each) for name, each in self.eval_sets.items()
            },
            "model_arguments": dataclasses.asdict(self.model_args),
            "data_arguments": dataclasses.asdict(self.data_args),
            "training_arguments": args.to_dict(),
        }
        text = json.dumps(description, indent=2, default=str) + "\n"
        write_text(Path(args.output_dir) / RUN_FILE, text)


def earlier_workers(output_dir: str) -> int | None:
    """The number of data workers of the run that left a checkpoint; None if there is none, or no run.json."""
    if not saving.checkpoints(output_dir):
        return None
    try:
        run = json.loads((Path(output_dir) / RUN_FILE).read_text(encoding="utf-8"))
        return run["training_arguments"]["dataloader_num_workers"]
    except (OSError, ValueError, KeyError):  # a run goes on without that file
        return None


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that affect results; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of the running code, with -dirty if the code was changed since; None outside a clone."""
    root = Path(llava.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name() -> str:
    """This rank's accelerator, or the processor's architecture."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def count_parameters(model: nn.Module) -> dict[str, dict[str, int]]:
    """Maps each part to its numbers of trainable and of frozen parameters."""
    table: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        counts = table.setdefault(part_of(name), {"learns": 0, "frozen": 0})
        # under ZeRO-3 numel() is 0
        counts["learns" if parameter.requires_grad else "frozen"] += getattr(
            parameter, "ds_numel", parameter.numel()
        )
    return table


def describe_data(paths: list[str], dataset) -> dict:
    """Files, number of records, and how many were bad or cut so far; None for a number a stream lacks."""
    return {
        "files": paths,
        "records": len(dataset) if isinstance(dataset, Sized) else None,
        "bad": len(dataset.bad_records),
        "truncated": getattr(dataset, "num_truncated", None),
    }


def rewrite_metrics(args, state) -> None:
    """Keep only the rows up to the checkpoint that a run goes on from, because later steps are run again."""
    rows = filter(is_metrics, state.log_history)
    write_text(Path(args.output_dir) / METRICS_FILE, "".join(map(metrics_line, rows)))


def is_metrics(row: dict) -> bool:
    """Whether a row of the trainer's log describes steps or an evaluation, not the run as a whole."""
    return "loss" in row or eval_set(row) is not None


def eval_set(row: dict) -> str | None:
    """The name of the set that a row evaluates; None if the row is not an evaluation."""
    names = (name for name in row if name.startswith("eval_") and name.endswith("_loss"))
    return next((name.removeprefix("eval_").removesuffix("_loss") for name in names), None)


def append_metrics(args, state) -> None:
    """Append the newest row of the trainer's log."""
    with open(Path(args.output_dir) / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write(metrics_line(state.log_history[-1]))


def metrics_line(row: dict[str, float]) -> str:
    """A line of JSON with the step first. Non-finite numbers, which JSON does not have, become null."""
    row = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps({"step": row.pop("step"), **row}) + "\n"


def draw_loss(args, state) -> None:
    """Draw loss.png: logged losses, their running mean, validation losses and, below, the accuracies."""
    curves = metric_curves(state.log_history)
    if "loss" not in curves:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(
            "%s was not written: matplotlib is not installed; run pip install matplotlib.", CURVE_FILE
        )
        return
    panels = [("loss", "_loss"), ("token accuracy", "_accuracy")][: 1 if len(curves) == 1 else 2]
    figure = Figure(figsize=(7, 4 * len(panels)), layout="constrained")
    for number, (label, ending) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        validated = (name for name in curves if name.endswith(ending))
        for colour, name in enumerate(validated, start=1):
            axes.plot(*zip(*curves[name], strict=True), marker=".", color=f"C{colour}", label=name)
        if label == "loss":
            steps, losses = zip(*curves["loss"], strict=True)
            axes.plot(steps, losses, color="tab:blue", alpha=0.35, label="logged")
            axes.plot(steps, running_mean(losses), color="tab:blue", label=f"mean of the last {SMOOTHING}")
            axes.set_title(Path(args.output_dir).name)
        axes.set(xlabel="step", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture := io.BytesIO(), dpi=120)
    write_bytes(Path(args.output_dir) / CURVE_FILE, picture.getvalue())


def metric_curves(history: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Maps loss, and each set's eval_SET_loss and eval_SET_accuracy, to its finite (step, value) pairs."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        name = eval_set(row)
        for metric in ("loss",) if name is None else (f"eval_{name}_loss", f"eval_{name}_accuracy"):
            if math.isfinite(row.get(metric, math.nan)):
                curves.setdefault(metric, []).append((row["step"], row[metric]))
    return curves


def running_mean(values: Sequence[float]) -> list[float]:
    """For each value, the mean of the up to SMOOTHING values that end with it."""
    windows = (values[max(0, end - SMOOTHING) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
