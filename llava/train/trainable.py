"""The one place that decides which parameters are trainable, in which dtype and at which learning rate."""

import logging

import torch
from transformers import PreTrainedModel

from llava.model.checkpoint import NEWLINE
from llava.train.arguments import ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)

VISION_TOWER, PROJECTOR, LANGUAGE_MODEL = "vision_tower", "mm_projector", "language_model"


def part_of(parameter_name: str) -> str:
    """Which of the three parts a parameter of the whole model belongs to; image_newline: the projector."""
    modules = parameter_name.split(".")
    if NEWLINE in modules:
        return PROJECTOR
    return next((part for part in (VISION_TOWER, PROJECTOR) if part in modules), LANGUAGE_MODEL)


def compute_dtype(training_args: TrainingArguments) -> torch.dtype:
    """The dtype of matrix products."""
    if training_args.bf16:
        return torch.bfloat16
    return torch.float16 if training_args.fp16 else torch.float32


def learning_parts(model_args: ModelArguments, training_args: TrainingArguments) -> dict[str, bool]:
    """Maps each part to whether it is trainable."""
    return {
        VISION_TOWER: model_args.unfreeze_mm_vision_tower,
        PROJECTOR: not training_args.freeze_mm_mlp_adapter,
        LANGUAGE_MODEL: not (model_args.tune_mm_mlp_adapter or model_args.freeze_backbone),
    }


def learning_rates(training_args: TrainingArguments) -> dict[str, float]:
    """Maps each part to its learning rate."""
    given: dict = {
        VISION_TOWER: training_args.mm_vision_tower_lr,
        PROJECTOR: training_args.mm_projector_lr,
        LANGUAGE_MODEL: None,
    }
    return {part: training_args.learning_rate if rate is None else rate for part, rate in given.items()}


def set_trainable(model: PreTrainedModel, learns: dict[str, bool], adapters: bool = False) -> None:
    """Set requires_grad part by part, and log how many parameters of each part are trainable.

    Args:
        adapters: whether the language model has adapters; its requires_grad flags are then already set.
    """
    counts = {part: [0, 0] for part in learns}
    idle = {id(parameter) for parameter in model.get_vision_tower().idle_parameters()}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if not (adapters and part == LANGUAGE_MODEL):
            # quantised weights are not floating point
            learning = learns[part] and parameter.is_floating_point() and id(parameter) not in idle
            parameter.requires_grad_(learning)
        size = getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 numel() is 0
        counts[part][0] += size * parameter.requires_grad
        counts[part][1] += size
    for part, (learning, total) in counts.items():
        logger.info("%-15s %13s of %13s parameters learn", part, f"{learning:,}", f"{total:,}")


def set_dtypes(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Convert trainable parameters and the whole projector to float32, which autocast casts, and frozen ones
    to the compute dtype."""
    model.get_projector().float()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            full = parameter.requires_grad or part_of(name) == PROJECTOR
            parameter.data = parameter.data.to(torch.float32 if full else compute_dtype)
