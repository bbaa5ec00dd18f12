"""What learns and what is frozen, stated in one place."""

import logging

from torch import nn

from llava.model.checkpoint import NEWLINE
from llava.train.arguments import ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)

VISION_TOWER, PROJECTOR, LANGUAGE_MODEL = "vision_tower", "mm_projector", "language_model"


def part_of(parameter_name: str) -> str:
    """Which of the three parts a parameter of the whole model is of; image_newline is the projector's."""
    modules = parameter_name.split(".")
    if NEWLINE in modules:
        return PROJECTOR
    return next((part for part in (VISION_TOWER, PROJECTOR) if part in modules), LANGUAGE_MODEL)


def learning_parts(model_args: ModelArguments, training_args: TrainingArguments) -> dict[str, bool]:
    """Part to whether it learns."""
    return {
        VISION_TOWER: False,
        PROJECTOR: not training_args.freeze_mm_mlp_adapter,
        LANGUAGE_MODEL: not (model_args.tune_mm_mlp_adapter or model_args.freeze_backbone),
    }


def apply(model: nn.Module, learns: dict[str, bool]) -> None:
    """Set requires_grad, part by part, and log the table of counts."""
    counts = dict.fromkeys(learns, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(learns[part])
        counts[part] += getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty shell
    for part, count in counts.items():
        logger.info("%-15s %-8s %13s parameters", part, "learns" if learns[part] else "frozen", f"{count:,}")
