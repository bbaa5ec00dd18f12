"""Weights of projectors into modules: no key missing, unexpected or mis-shaped in silence."""

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
TRAINABLES_FILE = "non_lora_trainables.bin"  # what learnt beside adapters


def cut_to_projector(names: list[str]) -> list[str]:
    """model.mm_projector.mlp.0.bias -> mlp.0.bias; names of other parts fall out."""
    return [name.split(PROJECTOR_PREFIX, 1)[1] for name in names if PROJECTOR_PREFIX in name]


def is_of_projector(name: str) -> bool:
    """Whether a weight of a whole model is the projector's, or image_newline, which learns with it."""
    return PROJECTOR_PREFIX in name or name.split(".")[-1] == NEWLINE


def projector_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projector's weights by its own names, model.mm_projector.mlp.0.bias -> mlp.0.bias, and
    image_newline where there is one; other parts fall out."""
    return {
        NEWLINE if name.split(".")[-1] == NEWLINE else name.split(PROJECTOR_PREFIX, 1)[1]: value
        for name, value in state.items()
        if is_of_projector(name)
    }


def read_projector(file: str | Path) -> dict[str, Tensor]:
    """mm_projector.bin, as projector_state.

    Raises UserError if the file is missing, damaged, or holds no projector.
    """
    state = read_bin(file, "run stage 1 (scripts/v1_5/pretrain.sh) first.")
    cut = projector_state(state)
    if not set(cut) - {NEWLINE}:
        raise UserError(
            f"{file} holds no keys of a projector (*.{PROJECTOR_PREFIX}*), but {sorted(state)[:5]}."
        )
    return cut


def load_projector(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load what read_projector read: the projector, and image_newline where model and file have one.

    A stage 1 without a newline may come before a stage 2 with one, which then begins as it is initialised.

    Raises UserError if weights do not fit; or a newline came that this model would not use.
    """
    weights = {key: value for key, value in state.items() if key != NEWLINE}
    newline = getattr(model.get_model(), NEWLINE, None)
    if newline is None and NEWLINE in state:
        raise UserError(
            f"{source} has an {NEWLINE}, learnt with --mm_patch_merge_type spatial_unpad; pass it here too."
        )
    load_exactly(model.get_projector(), weights, source)
    if newline is not None and NEWLINE not in state:
        logger.info("%s has no %s; it is learnt from here on.", source, NEWLINE)
    elif newline is not None:
        with torch.no_grad(), gathered([newline], write=True):
            problems = check_fit({NEWLINE: newline}, {NEWLINE: state[NEWLINE]}, needed=[NEWLINE])
            if problems:
                raise UserError(f"{source} does not fit the model: {problems}.")
            newline.copy_(state[NEWLINE])


def check_fit(own: dict[str, Tensor], state: dict[str, Tensor], needed: Iterable[str]) -> str:
    """What of `state` does not fit `own`, key by key, and what of `needed` it lacks; empty if it fits."""
    problems = [f"missing {key}" for key in needed if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {list(state[key].shape)}, the model takes {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    return "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """load_state_dict that lists each missing, unexpected and mis-shaped key, and then loads nothing.

    Raises UserError with that list.
    """
    with gathered(module.parameters(), write=True):
        own = module.state_dict()
        problems = check_fit(own, state, needed=own)
        if problems:
            raise UserError(
                f"{source} does not fit this {type(module).__name__}: {problems}. "
                "Check --mm_projector_type and that language model and tower are those it was trained with."
            )
        module.load_state_dict(state)
