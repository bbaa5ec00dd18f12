"""Checkpoint folders, and weights into modules: no key missing, unexpected or mis-shaped in silence."""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
PROJECTOR_PREFIX = "mm_projector."
NEWLINE = "image_newline"  # learnt with the projector and kept beside it
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# A weight that one type of projector alone has; VisualPrism without HKVE shares TokenPacker's.
SIGNATURES = {"q_fusion_weights": "visualprism", "k_proj_1.0.weight": "tokenpacker"}
# Constants that older versions of transformers saved; today they are computed.
SAVED_CONSTANTS = ("rotary_emb.inv_freq", "embeddings.position_ids")


@dataclass
class CheckpointFolder:
    """The kinds of weights a folder holds, and its config.json."""

    path: Path
    config: dict
    has_model: bool
    has_projector: bool


def inspect_folder(path: str | Path) -> CheckpointFolder:
    """Look at the files, never at the name.

    Raises:
        ValueError: if there is no folder, no config.json, or no weights; names what is there.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"--model-path {str(path)!r} is not a folder; give the folder that training wrote.")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{path} has no config.json; it holds {sorted(f.name for f in path.iterdir())}.")
    try:
        config = json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{config_file} is not JSON ({error}); copy it again from its source.") from error
    folder = CheckpointFolder(
        path,
        config,
        has_model=any((path / name).is_file() for name in WEIGHT_FILES),
        has_projector=(path / PROJECTOR_FILE).is_file(),
    )
    if not (folder.has_model or folder.has_projector):
        raise ValueError(
            f"{path} has no weights: "
            f"neither {WEIGHT_FILES[0]} (a whole model) nor {PROJECTOR_FILE} (stage 1)."
        )
    return folder


def weight_names(folder: Path) -> list[str]:
    """Names of all weights of a whole model's folder, without reading a weight."""
    for name in WEIGHT_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if name.endswith(".index.json"):
            return list(json.loads(file.read_text())["weight_map"])
        if name.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                return list(opened.keys())
        return list(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
    return []


def cut_to_projector(names: list[str]) -> list[str]:
    """model.mm_projector.mlp.0.bias -> mlp.0.bias; names of other parts fall out."""
    return [name.split(PROJECTOR_PREFIX, 1)[1] for name in names if PROJECTOR_PREFIX in name]


def projector_type_of(names: list[str], declared: str | None, source: str) -> str | None:
    """The projector's type by the weights present, where config.json lacks it or is wrong; says so.

    Args:
        names: of the projector's weights, cut to its own.
        declared: config.json's mm_projector_type. Published TokenPacker configurations lack it or say linear.
    """
    found = declared
    signature = next((kind for weight, kind in SIGNATURES.items() if weight in names), None)
    if signature is not None:
        found = signature
    elif declared in (None, "linear") and names:
        if all(re.fullmatch(r"\d+\.(weight|bias)", name) for name in names):
            found = f"mlp{sum(name.endswith('.weight') for name in names)}x_gelu"
        elif set(names) == {"weight", "bias"}:
            found = "linear"
    if found != declared:
        logger.warning(
            "%s: config.json says mm_projector_type %r, its weights are %s's.", source, declared, found
        )
    return found


def read_projector(file: str | Path) -> dict[str, Tensor]:
    """mm_projector.bin, its keys cut to the projector's own: model.mm_projector.mlp.0.bias -> mlp.0.bias; and
    image_newline, if it holds one.

    Raises:
        ValueError: if the file is missing, damaged, or holds no projector.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; run stage 1 (scripts/v1_5/pretrain.sh) first.") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); it is damaged: write or copy it again."
        ) from error
    cut = {
        key.split(PROJECTOR_PREFIX, 1)[1]: value for key, value in state.items() if PROJECTOR_PREFIX in key
    }
    if not cut:
        raise ValueError(
            f"{file} holds no keys of a projector (*.{PROJECTOR_PREFIX}*), but {sorted(state)[:5]}."
        )
    newline = [value for key, value in state.items() if key.split(".")[-1] == NEWLINE]
    return {**cut, NEWLINE: newline[0]} if newline else cut


def load_projector(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load what read_projector read: the projector, and image_newline where model and file have one.

    A stage 1 without a newline may come before a stage 2 with one, which then begins as it is initialised.

    Raises:
        ValueError: if weights do not fit; or a newline came that this model would not use.
    """
    weights = {key: value for key, value in state.items() if key != NEWLINE}
    newline = getattr(model.get_model(), NEWLINE, None)
    if newline is None and NEWLINE in state:
        raise ValueError(
            f"{source} has an {NEWLINE}, learnt with --mm_patch_merge_type spatial_unpad; pass it here too."
        )
    load_exactly(model.get_projector(), weights, source)
    if newline is not None and NEWLINE not in state:
        logger.info("%s has no %s; it is learnt from here on.", source, NEWLINE)
    elif newline is not None:
        if newline.shape != state[NEWLINE].shape:
            raise ValueError(
                f"{source}: {NEWLINE} is {list(state[NEWLINE].shape)}, the model takes {list(newline.shape)}."
            )
        with torch.no_grad():
            newline.copy_(state[NEWLINE])


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """load_state_dict that lists each missing, unexpected and mis-shaped key, and then loads nothing.

    Raises:
        ValueError: with that list.
    """
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {list(state[key].shape)}, the model takes {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(
            f"{source} does not fit this {type(module).__name__}: {shown}. "
            "Check --mm_projector_type and that language model and tower are those it was trained with."
        )
    module.load_state_dict(state)
