"""Loads projectors' weights into modules; every missing, unexpected or mis-shaped key is reported."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from llava.errors import UserError
from llava.model.files import read_bin
from llava.model.zero3 import gathered

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
PROJECTOR_PREFIX = "mm_projector."
NEWLINE = "image_newline"  # learnt with the projector and kept beside it
ADAPTER_CONFIG = "adapter_config.json"
TRAINABLES_FILE = "non_lora_trainables.bin"  # the weights trained beside adapters


def cut_to_projector(names: list[str]) -> list[str]:
    """model.mm_projector.mlp.0.bias -> mlp.0.bias; names of other parts are dropped."""
    return [name.split(PROJECTOR_PREFIX, 1)[1] for name in names if PROJECTOR_PREFIX in name]


def is_of_projector(name: str) -> bool:
    """Whether a weight of a whole model is the projector's, or image_newline, which is trained with it."""
    return PROJECTOR_PREFIX in name or name.split(".")[-1] == NEWLINE


def projector_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the projector's weights, by its own names (model.mm_projector.mlp.0.bias -> mlp.0.bias), and
    image_newline if there is one; other parts are dropped."""
    return {
        NEWLINE if name.split(".")[-1] == NEWLINE else name.split(PROJECTOR_PREFIX, 1)[1]: value
        for name, value in state.items()
        if is_of_projector(name)
    }


def read_projector(file: str | Path) -> dict[str, Tensor]:
    """Read mm_projector.bin, keyed as in projector_state.

    Raises UserError if the file is missing or damaged, or holds no projector.
    """
    state = read_bin(file, "run stage 1 (scripts/v1_5/pretrain.sh) first.")
    cut = projector_state(state)
    if not set(cut) - {NEWLINE}:
        raise UserError(
            f"{file} contains no keys of a projector (*.{PROJECTOR_PREFIX}*), but {sorted(state)[:5]}."
        )
    return cut


def load_projector(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load what read_projector read: the projector, and image_newline if model and file have one.

    If only the model has a newline (stage 1 was trained without one), it keeps its initial value.

    Raises UserError if weights do not fit, or if only the file has a newline.
    """
    weights = {key: value for key, value in state.items() if key != NEWLINE}
    newline = getattr(model.get_model(), NEWLINE, None)
    if newline is None and NEWLINE in state:
        raise UserError(
            f"{source} has an {NEWLINE}, learnt with --mm_patch_merge_type spatial_unpad; pass this flag too."
        )
    load_exactly(model.get_projector(), weights, source)
    if newline is not None and NEWLINE not in state:
        logger.info("%s has no %s; training starts from a new one.", source, NEWLINE)
    elif newline is not None:
        with torch.no_grad(), gathered([newline], write=True):
            problems = check_fit({NEWLINE: newline}, {NEWLINE: state[NEWLINE]}, needed=[NEWLINE])
            if problems:
                raise UserError(f"{source} does not fit the model: {problems}.")
            newline.copy_(state[NEWLINE])


def check_fit(own: dict[str, Tensor], state: dict[str, Tensor], needed: Iterable[str]) -> str:
    """List the keys of `state` that do not fit `own` and the keys of `needed` that it lacks; "" if none."""
    problems = [f"missing {key}" for key in needed if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {list(state[key].shape)}, but the model's has {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    return "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `module`, or nothing if a key is missing, unexpected or mis-shaped.

    Raises UserError with a list of such keys.
    """
    with gathered(module.parameters(), write=True):
        own = module.state_dict()
        problems = check_fit(own, state, needed=own)
        if problems:
            raise UserError(
                f"{source} does not fit this {type(module).__name__}: {problems}. "
                "Check --mm_projector_type; use the language model and the tower that it was trained with."
            )
        module.load_state_dict(state)
