"""What a run writes: visible only when whole, found again by what is in it."""

import copy
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from llava.model.adapters import (
    ADAPTER_NAME,
    ADAPTER_WEIGHTS,
    PUBLISHED_PREFIX,
    is_adapter,
    is_quantized,
    published_key,
)
from llava.model.checkpoint import PROJECTOR_FILE, TRAINABLES_FILE, gathered
from llava.train.trainable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, part_of

STATE_FILE = "trainer_state.json"
CHECKPOINT_PREFIX = "checkpoint-"
STAGING = "incomplete"


def saves_adapters(model: PreTrainedModel) -> bool:
    """LoRA keeps the adapters and what learnt beside them."""
    return any(is_adapter(name) for name, _ in model.named_parameters())


def saves_projector(model: PreTrainedModel) -> bool:
    """Stage 1 keeps the projector alone; so does a run over quantised weights, which are not to be saved."""
    return model.config.tune_mm_mlp_adapter or (is_quantized(model) and not saves_adapters(model))


def learned_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """CPU copies of the projector, buffers included, of the adapters, and of all else that learns; of a tower
    that learns, all. A collective under ZeRO-3: every rank calls it."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = {part_of(name) for name in learning} & {VISION_TOWER} | {PROJECTOR}
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in learning or part_of(name) in parts or is_adapter(name):
            with gathered([value]):
                state[name] = value.detach().cpu().clone()
    return state


def save_projector(model: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """mm_projector.bin, by published keys (model.mm_projector.*), and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = learned_state(model) if state is None else state
    torch.save({name: v for name, v in state.items() if part_of(name) == PROJECTOR}, folder / PROJECTOR_FILE)
    save_config(model, folder)


def save_adapters(model: PreTrainedModel, folder: Path, state: dict[str, Tensor]) -> None:
    """What of the language model learns as peft writes it, adapter_config.json and adapter_model.safetensors;
    all else of learned_state in non_lora_trainables.bin; and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    adapters = {name for name in state if part_of(name) == LANGUAGE_MODEL}
    save_file(
        {published_key(name): state[name] for name in adapters}, folder / ADAPTER_WEIGHTS[0], {"format": "pt"}
    )
    others = {PUBLISHED_PREFIX + name: value for name, value in state.items() if name not in adapters}
    torch.save(others, folder / TRAINABLES_FILE)
    config = copy.copy(model.peft_config[ADAPTER_NAME])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_config(model, folder)


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """config.json; its weights are loaded over a model in full precision as well as over a quantised one."""
    config = copy.deepcopy(model.config)
    if is_quantized(model):
        del config.quantization_config
    config.save_pretrained(folder)


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
