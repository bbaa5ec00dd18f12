"""Writes weights of one layout into a folder of another, with one shard in memory at a time."""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.model.builder import SAVED_CONSTANTS
from llava.model.files import INDEX, check_model, check_weights, model_file, read_bin, weight_map

Shard = Callable[[], dict[str, Tensor]]  # reads its tensors when it is called
WORDS = re.compile(r"(.*embed_tokens|lm_head)\.weight")  # a row for each token
TOWER, PLAIN_TOWER = "model.vision_tower.vision_tower.", "model.vision_tower."
PROJECTOR, PLAIN_PROJECTOR = "model.mm_projector.", "model.multi_modal_projector."
LANGUAGE, PLAIN_LANGUAGE = "model.", "model.language_model."
KEPT = ("lm_head.", "model.image_newline")
# transformers' names of the two maps of mlp2x_gelu
LINEAR = {"0.": "linear_1.", "2.": "linear_2."}
# Maps the prefixes that transformers' save_pretrained writes for its own Llava classes to those of exports
OLD_NAMES = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": PLAIN_LANGUAGE,
    "vision_tower.": PLAIN_TOWER,
    "multi_modal_projector.": PLAIN_PROJECTOR,
    "image_newline": "model.image_newline",
}


def exported_name(name: str, stock: bool) -> str | None:
    """The exported folder's name for a weight of ours; None for a constant that older folders hold.

    Args:
        stock: whether the export is for transformers' own class, and not for ours in llava.hf.
    """
    if name.endswith(SAVED_CONSTANTS):
        return None
    if name.startswith(KEPT):
        return name
    if name.startswith(TOWER):
        rest = name.removeprefix(TOWER).removeprefix("vision_model.")  # as transformers before 5 named it
        return (PLAIN_TOWER if stock else TOWER) + rest
    if name.startswith(PROJECTOR):
        rest = name.removeprefix(PROJECTOR)
        return PLAIN_PROJECTOR + (LINEAR[rest[:2]] + rest[2:] if stock else rest)
    return PLAIN_LANGUAGE + name.removeprefix(LANGUAGE)


def our_name(name: str, stock: bool) -> str:
    """Our name for a weight of an exported folder; the inverse of exported_name."""
    for old, new in OLD_NAMES.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    if name.startswith(KEPT):
        return name
    if name.startswith(PLAIN_PROJECTOR):
        rest = name.removeprefix(PLAIN_PROJECTOR)
        maps = {new: old for old, new in LINEAR.items()} if stock else {}
        for new, old in maps.items():
            rest = rest.replace(new, old)
        return PROJECTOR + rest
    if name.startswith(PLAIN_TOWER):
        return TOWER + name.removeprefix(PLAIN_TOWER if stock else TOWER)
    return LANGUAGE + name.removeprefix(PLAIN_LANGUAGE)


def stored_shards(folder: Path) -> list[Shard]:
    """The shards of a whole model's folder, one a file. Raises UserError if one is missing or damaged."""
    check_model(folder)
    file = model_file(folder)
    assert file is not None, folder
    names = sorted(set(weight_map(file).values())) if file.name.endswith(INDEX) else [file.name]
    return [partial(read_shard, folder / name) for name in names]


def read_shard(file: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights. Raises UserError if it is missing or damaged."""
    if file.suffix == ".safetensors":
        check_weights(file)
        return load_file(file)
    return read_bin(file, mmap=True)


def shards_of(state: dict[str, Tensor]) -> list[Shard]:
    """Split a state dict into shards of transformers' size; tied weights keep only their first name."""
    found: dict[int, str] = {}
    state = {name: value for name, value in state.items() if found.setdefault(value.data_ptr(), name) == name}
    split = split_torch_state_dict_into_shards(state)
    return [
        partial(lambda names: {name: state[name] for name in names}, names)
        for names in split.filename_to_tensors.values()
    ]


def write_shards(
    shards: list[Shard], renamed: Callable[[str, Tensor], tuple[str | None, Tensor]], folder: Path
) -> list[str]:
    """Write model.safetensors, or numbered shards and their index.

    Args:
        renamed: gives a tensor's name and value in the new layout; a name of None leaves it out.
    Returns:
        the names of all weights that were written.
    """
    where, size = {}, 0
    for number, read in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        changed = (renamed(name, value) for name, value in read().items())
        tensors = {name: value.contiguous() for name, value in changed if name is not None}
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        size += sum(value.numel() * value.element_size() for value in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / f"model.safetensors{INDEX}").write_text(json.dumps(index, indent=2) + "\n")
    return list(where)


def with_rows(name: str, value: Tensor, num_rows: int, known: Iterable[int]) -> Tensor:
    """Extend a table of tokens float[V, D] to num_rows, where each new row is the mean of the known tokens';
    any other tensor stays as it is."""
    if not WORDS.fullmatch(name) or len(value) >= num_rows:
        return value
    index = torch.tensor([row for row in known if row < len(value)])
    mean = value[index].mean(dim=0, dtype=torch.float32).to(value.dtype)
    return torch.cat([value, mean.expand(num_rows - len(value), -1)])


def without_rows(name: str, value: Tensor, num_rows: int) -> Tensor:
    """Cut a table of tokens to its first num_rows; any other tensor stays as it is."""
    return value[:num_rows] if WORDS.fullmatch(name) else value
