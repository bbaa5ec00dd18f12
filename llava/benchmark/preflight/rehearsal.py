"""A few real steps of the run under the script's own launcher, on its records, with random weights."""

import copy
import json
import os
import sys
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainerCallback

from llava.benchmark.preflight.checks import without
from llava.command import message
from llava.errors import UserError
from llava.model.multimodal_projector.builder import VisionFields, copy_fields
from llava.model.plan import CheckpointPlan
from llava.train.train import prepare

WARM_UP, TIMED = 2, 4  # steps
LEFT_OUT = ("--pretrain_mm_mlp_adapter", "--lora_weight_path")  # weights that an earlier stage writes


class Steps(TrainerCallback):
    """Measures the seconds of each step, the device's work included, and ends the run after the last one."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._start)
        self._start = now
        if len(self.seconds) == WARM_UP + TIMED:
            control.should_training_stop = True


def random_weights(
    plan: CheckpointPlan, fields: VisionFields, options: dict, projector_dtype: torch.dtype | None
) -> PreTrainedModel:
    """The model that load_with_vision would give, with random weights that are made on the device."""
    if "quantization_config" in options:
        raise UserError("--bits: steps with quantised weights cannot be tried before a run; leave it out.")
    config = copy.deepcopy(plan.config)
    copy_fields(config, fields)
    config._attn_implementation = options["attn_implementation"]
    with torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"):
        model = plan.model_class._from_config(config, dtype=options["dtype"])
    if projector_dtype is not None:
        model.get_projector().to(projector_dtype)
    model.get_vision_tower().requires_grad_(False)
    return model


def rehearse(result: str, scratch: str, *flags: str) -> None:
    """Do the first steps of the run with these flags.

    Args:
        result: file to write the figures to.
        scratch: folder for the files that the run itself writes.
    """
    own = ["--output_dir", scratch, "--save_strategy", "no", "--report_to", "none"]
    try:
        trainer = prepare([*without(flags, LEFT_OUT), *own], random_weights)
    except UserError as error:
        sys.exit(message(error, "preflight"))
    assert trainer is not None  # a scratch folder holds no complete run
    steps = Steps()
    trainer.add_callback(steps)
    with trainer.folder_lock:
        trainer.train()
    if trainer.is_world_process_zero():
        args = trainer.args
        figures = {
            "seconds": steps.seconds[WARM_UP:],
            "max_steps": trainer.state.max_steps,
            "max_steps_given": args.max_steps > 0,
            "samples_a_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "peak_memory_gib": max(row.get("peak_memory_gib", 0) for row in trainer.state.log_history),
        }
        Path(result).write_text(json.dumps(figures))
    trainer.accelerator.end_training()
