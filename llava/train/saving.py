"""Writes checkpoints and results, which get their final names only when complete, and finds them again."""

import copy
import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from llava.errors import UserError
from llava.model.adapters import (
    ADAPTER_NAME,
    ADAPTER_WEIGHTS,
    PUBLISHED_PREFIX,
    is_adapter,
    is_quantized,
    published_key,
)
from llava.model.checkpoint import PROJECTOR_FILE, TRAINABLES_FILE
from llava.model.zero3 import gathered
from llava.train.trainable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, part_of
from llava.wholefile import sync

STATE_FILE = "trainer_state.json"
CHECKPOINT_PREFIX = "checkpoint-"
STAGING = "incomplete"
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)  # torch.save raises the last
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def saves_adapters(model: PreTrainedModel) -> bool:
    """Whether only adapters and the weights trained with them are saved, as with LoRA."""
    return any(is_adapter(name) for name, _ in model.named_parameters())


def saves_projector(model: PreTrainedModel) -> bool:
    """Whether only the projector is saved: in stage 1, and with quantised weights but no adapters.

    Quantised weights themselves are not saved.
    """
    return model.config.tune_mm_mlp_adapter or (is_quantized(model) and not saves_adapters(model))


def learned_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """CPU copies of the projector with its buffers, the adapters, all other trainable weights, and the whole
    vision tower if any of it is trained. Under ZeRO-3 this is a collective: every rank must call it."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = {part_of(name) for name in learning} & {VISION_TOWER} | {PROJECTOR}
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in learning or part_of(name) in parts or is_adapter(name):
            with gathered([value]):
                state[name] = value.detach().cpu().clone()
    return state


def save_projector(model: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write mm_projector.bin with published keys (model.mm_projector.*), and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = learned_state(model) if state is None else state
    torch.save({name: v for name, v in state.items() if part_of(name) == PROJECTOR}, folder / PROJECTOR_FILE)
    save_config(model, folder)


def save_adapters(model: PreTrainedModel, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the language model's trained weights in peft's form, adapter_config.json and
    adapter_model.safetensors; all other weights of `state` to non_lora_trainables.bin; and config.json."""
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
    """Write config.json without quantisation: the saved weights also fit a model in full precision."""
    config = copy.deepcopy(model.config)
    if is_quantized(model):
        del config.quantization_config
    config.save_pretrained(folder)


def publish_result(output_dir: Path) -> None:
    """Move a written result out of its staging folder, each file in one rename, the trainer's state last."""
    staging = output_dir / STAGING
    sync_tree(staging)
    (output_dir / STATE_FILE).unlink(missing_ok=True)  # an extended run's earlier result is replaced
    sync(output_dir)
    for item in sorted(staging.iterdir()):
        if item.name != STATE_FILE:
            os.replace(item, output_dir / item.name)
    sync(output_dir)  # before the state, which marks the result as complete
    os.replace(staging / STATE_FILE, output_dir / STATE_FILE)
    staging.rmdir()
    sync(output_dir)


def publish_checkpoint(output_dir: Path, name: str, limit: int | None, best: str | None = None) -> None:
    """Give a written checkpoint its name in one rename, and keep only `limit` complete checkpoints.

    The best one and the newest are always kept. Old ones are renamed before they are deleted, so that a
    folder under a checkpoint's name is complete at any moment.
    """
    staging = output_dir / STAGING
    if not (output_dir / name / STATE_FILE).is_file():  # otherwise this step was saved before
        shutil.rmtree(output_dir / name, ignore_errors=True)  # incomplete, of a run that wrote in place
        sync_tree(staging / name)
        (staging / name).rename(output_dir / name)
        sync(output_dir)  # before old ones are deleted
    whole = checkpoints(output_dir)
    kept = {whole[-1].name, best} & {folder.name for folder in whole}
    others = [folder for folder in whole if folder.name not in kept]
    num_old = max(len(whole) - max(limit, len(kept)), 0) if limit else 0
    for old in others[:num_old]:
        old.rename(staging / f"old-{old.name}")
    shutil.rmtree(staging)


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first. The trainer's state is written last, so it marks a complete one."""
    found = {}
    for folder in Path(output_dir).glob(f"{CHECKPOINT_PREFIX}*"):
        step = folder.name.removeprefix(CHECKPOINT_PREFIX)
        if step.isdigit() and (folder / STATE_FILE).is_file():
            found[int(step)] = folder
    return [found[step] for step in sorted(found)]


def is_complete(output_dir: str | Path) -> bool:
    """Whether the run in this folder has ended and saved its whole result."""
    if not (Path(output_dir) / STATE_FILE).is_file():
        return False
    state = read_state(output_dir)
    return state["global_step"] >= state["max_steps"]


def read_state(folder: str | Path) -> dict:
    """The trainer's state of a checkpoint or of a result."""
    return json.loads((Path(folder) / STATE_FILE).read_text())


def check_writable(output_dir: str | Path) -> None:
    """Check before hours of training that a file can be written and removed.

    If the folder does not exist yet, the nearest folder above it is checked.

    Raises:
        UserError: if that fails.
    """
    folder = Path(output_dir).absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"?")
    except OSError as error:
        raise UserError(cannot_be_written(output_dir, error)) from error


def cannot_be_written(output_dir: str | Path, error: OSError) -> str:
    """The error message for an --output_dir that cannot be written to."""
    remedy = "choose another, or make room" if error.errno in NO_SPACE else "choose another"
    return f"--output_dir {str(output_dir)!r} cannot be written to ({error}); {remedy}."


def describe_failure(what: str, error: BaseException, output_dir: str | Path) -> str:
    """One line: what could not be written, why, where the run goes on, and the free space if it is short."""
    causes = [error]
    while causes[-1].__context__ is not None:
        causes.append(causes[-1].__context__)
    cause = next((cause for cause in causes if isinstance(cause, OSError)), error)
    reason = str(cause).splitlines()[0]
    lacks_space = error_number(cause) in NO_SPACE
    if "inline_container" in reason:  # torch.save does not keep the system's error
        reason = f"a file was written only in part, for example because of a full disk or a quota: {reason}"
        lacks_space = True
    if lacks_space:
        reason += f" ({shutil.disk_usage(output_dir).free / 2**30:.1f} GiB are free there)"
    return f"{what} could not be written to {output_dir}: {reason}. {what_is_left(output_dir)}"


def error_number(error: BaseException) -> int | None:
    """The system's error number. An error of safetensors has it only in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def what_is_left(output_dir: str | Path) -> str:
    """A sentence that says where the same command goes on."""
    whole = checkpoints(output_dir)
    if not whole:
        return "There is no complete checkpoint yet: the same command starts from the beginning."
    return f"The last complete checkpoint is {whole[-1]}: the same command continues from it."
