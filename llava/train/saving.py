"""What a run writes: visible only when whole, found again by what is in it."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.checkpoint import NEWLINE, PROJECTOR_FILE, PROJECTOR_PREFIX

STATE_FILE = "trainer_state.json"
CHECKPOINT_PREFIX = "checkpoint-"
STAGING = "incomplete"


def projector_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projector's part of a state dict, buffers included, by published keys (model.mm_projector.*), and
    model.image_newline."""
    return {
        key: value.detach().cpu().clone()
        for key, value in state.items()
        if f".{PROJECTOR_PREFIX}" in key or key.endswith(f".{NEWLINE}")
    }


def save_projector(model: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Stage 1's output: mm_projector.bin and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(projector_state(model.state_dict() if state is None else state), folder / PROJECTOR_FILE)
    model.config.save_pretrained(folder)


def publish(scratch: Path, folder: Path) -> None:
    """Move what a finished save wrote from its scratch folder into `folder`, each file in one rename."""
    for item in scratch.iterdir():
        os.replace(item, folder / item.name)
    scratch.rmdir()


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole checkpoints, oldest first. The trainer's state is written last, so it tells a whole one."""
    found = {}
    for folder in Path(output_dir).glob(f"{CHECKPOINT_PREFIX}*"):
        step = folder.name.removeprefix(CHECKPOINT_PREFIX)
        if step.isdigit() and (folder / STATE_FILE).is_file():
            found[int(step)] = folder
    return [found[step] for step in sorted(found)]


def is_complete(output_dir: str | Path) -> bool:
    """Whether a run in this folder ended and saved all of it."""
    state = Path(output_dir) / STATE_FILE
    if not state.is_file():
        return False
    content = json.loads(state.read_text())
    return content["global_step"] >= content["max_steps"]
