"""What a run leaves beside its weights: run.json, metrics.jsonl and loss.png."""

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
from llava.train.trainable import part_of
from llava.wholefile import write_bytes, write_text

logger = logging.getLogger(__name__)

RUN_FILE, METRICS_FILE, CURVE_FILE = "run.json", "metrics.jsonl", "loss.png"
SMOOTHING = 20  # logged losses that the curve's mean is taken over
PACKAGES = ("llava", "torch", "transformers", "accelerate", "deepspeed", "peft")


class RunRecord(TrainerCallback):
    """Written by rank 0. A file of these that cannot be written is said so, and the run goes on.

    Args:
        model_args, data_args: flags as parsed; the trainer's own come from the trainer.
        dataset: tells bad and truncated records at the end.
    """

    def __init__(self, model_args, data_args, dataset):
        self.model_args = model_args
        self.data_args = data_args
        self.dataset = dataset

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._first_step = state.global_step
        if state.is_world_process_zero:
            self._write(self._describe_run, args, state, model)
            self._write(rewrite_metrics, args, state)

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero and "loss" in state.log_history[-1]:
            self._write(append_metrics, args, state)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            self._write(self._describe_run, args, state, model)
            self._write(draw_loss, args, state)

    def _write(self, write, args, *rest) -> None:
        try:
            write(args, *rest)
        except OSError as error:
            logger.warning("%s: %s; the run goes on without it.", args.output_dir, error)

    def _describe_run(self, args, state, model: nn.Module) -> None:
        description = {
            "command": sys.argv,
            "versions": versions(),
            "git_commit": git_commit(),
            "world_size": args.world_size,
            "device": device_name(),
            "started_from_step": self._first_step,
            "step": state.global_step,
            "max_steps": state.max_steps,
            "parameters": count_parameters(model),
            "data": describe_data(self.data_args.data_path, self.dataset),
            "model_arguments": dataclasses.asdict(self.model_args),
            "data_arguments": dataclasses.asdict(self.data_args),
            "training_arguments": args.to_dict(),
        }
        text = json.dumps(description, indent=2, default=str) + "\n"
        write_text(Path(args.output_dir) / RUN_FILE, text)


def versions() -> dict[str, str | None]:
    """Of Python and of what decides the numbers; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of the code that runs, with -dirty if it was changed since; None outside a clone."""
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
    """Part to how many of its parameters learn and how many are frozen."""
    table: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        counts = table.setdefault(part_of(name), {"learns": 0, "frozen": 0})
        # ZeRO-3 leaves an empty shell
        counts["learns" if parameter.requires_grad else "frozen"] += getattr(
            parameter, "ds_numel", parameter.numel()
        )
    return table


def describe_data(paths: list[str], dataset) -> dict:
    """Files, records, and how many proved bad or were cut so far; None where a stream does not know."""
    return {
        "files": paths,
        "records": len(dataset) if isinstance(dataset, Sized) else None,
        "bad": len(dataset.bad_records),
        "truncated": getattr(dataset, "num_truncated", None),
    }


def rewrite_metrics(args, state) -> None:
    """The rows up to the checkpoint a run goes on from: what came after it comes again."""
    rows = [row for row in state.log_history if "loss" in row]
    write_text(Path(args.output_dir) / METRICS_FILE, "".join(map(metrics_line, rows)))


def append_metrics(args, state) -> None:
    """The newest row of the trainer's log."""
    with open(Path(args.output_dir) / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write(metrics_line(state.log_history[-1]))


def metrics_line(row: dict[str, float]) -> str:
    """A line of JSON, step first; null where a number is not finite, which JSON does not know."""
    row = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps({"step": row.pop("step"), **row}) + "\n"


def draw_loss(args, state) -> None:
    """loss.png: each logged loss, and their running mean."""
    points = [
        (row["step"], row["loss"]) for row in state.log_history if math.isfinite(row.get("loss", math.nan))
    ]
    if not points:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: matplotlib is not installed; pip install matplotlib.", CURVE_FILE)
        return
    steps, losses = zip(*points, strict=True)
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, label="logged")
    axes.plot(steps, running_mean(losses), color="tab:blue", label=f"mean of the last {SMOOTHING}")
    axes.set(xlabel="step", ylabel="loss", title=Path(args.output_dir).name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture := io.BytesIO(), dpi=120)
    write_bytes(Path(args.output_dir) / CURVE_FILE, picture.getvalue())


def running_mean(values: Sequence[float]) -> list[float]:
    """Of up to SMOOTHING values that end at each."""
    windows = (values[max(0, end - SMOOTHING) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
