"""Checks and reads the files of a checkpoint; if one is incomplete, a UserError names it and the remedy.

The checks read only beginnings and headers, not weights. They take no time even for a folder of many
gigabytes, and come before loading.
"""

import json
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.errors import UserError

# A whole model's files of weights, in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
AGAIN = "download or copy it again."
# torch.load has no error class of its own: what a damaged file raises depends on its bytes
UNPICKLING_ERRORS = (
    *(RuntimeError, EOFError, ValueError, OSError, UnpicklingError),
    *(LookupError, AttributeError, TypeError, struct.error),
)
NUM_NAMED = 5  # the most missing shards that a message lists


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_present(file: Path, remedy: str = AGAIN) -> None:
    """Refuse a file that a failed download left missing, empty or replaced by something else.

    Args:
        remedy: what to do if it does not exist.
    Raises:
        UserError: if the file is missing, empty, a folder, a Git-LFS pointer or a web page.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the file in it.")
    if not file.is_file():
        raise UserError(f"{file} does not exist; {remedy}")
    with file.open("rb") as opened:
        start = opened.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty; {AGAIN}")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{file} is a Git-LFS pointer, not the file itself; run `git lfs pull` in {file.parent}, or "
            "download the file again."
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{file} is a web page, which was saved instead of the file; download the file itself."
        )


def check_weights(file: Path, remedy: str = AGAIN) -> None:
    """Refuse an incomplete file of weights (.safetensors or torch.save's), without reading the weights.

    Raises UserError as check_present does, or if the file is cut short or holds something else.
    """
    check_present(file, remedy)
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):  # compares the size with what the header says
                return
        with file.open("rb") as opened:
            start = opened.read(2)
        if start == b"PK":  # the list of contents is at the end of the file
            zipfile.ZipFile(file).close()
        elif start[:1] != b"\x80":  # a pickle, as torch saved until 1.5
            raise UserError(f"{file} was not written by torch.save; {AGAIN}")
    except (SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is cut short or damaged ({first_line(error)}); {AGAIN}") from error


def read_json(file: Path) -> dict:
    """Read the object in a JSON file.

    Raises UserError as check_present does, or if the file is not JSON or holds another value than an object.
    """
    check_present(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # from json, or from decoding the text
        raise UserError(f"{file} is not JSON ({error}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file} contains a {type(content).__name__}, expected a JSON object {{...}}; {AGAIN}"
        )
    return content


def read_bin(file: str | Path, remedy: str = AGAIN, mmap: bool = False) -> dict[str, Tensor]:
    """Read a file of torch.save's that maps names to tensors.

    Args:
        remedy: what to do if it does not exist.
        mmap: leave the values on the disk until they are used, where the file's format allows it.
    Raises:
        UserError: as check_weights does, or if the file is damaged or holds something else.
    """
    file = Path(file)
    check_weights(file, remedy)
    mmap = mmap and zipfile.is_zipfile(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UNPICKLING_ERRORS as error:
        raise UserError(f"{file} is damaged ({first_line(error)}); {AGAIN}") from error
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise UserError(f"{file} does not contain tensors by name; give the file that training wrote.")
    return state


def weight_map(index: Path) -> dict[str, str]:
    """Read the index of a model in shards, which maps each weight's name to the name of its file.

    Raises UserError as read_json does, or if the index has no such table.
    """
    names = read_json(index).get("weight_map")
    if not (isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values())):
        raise UserError(f"{index} has no weight_map, which maps weights to files; {AGAIN}")
    return names


def model_file(folder: Path) -> Path | None:
    """The file of a whole model's weights, or the index of its shards; None if the folder has neither."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def check_model(folder: Path) -> None:
    """Refuse a whole model's folder if a file is missing or incomplete, before its weights are read.

    Raises UserError that names the first such file; of missing shards it names up to NUM_NAMED.
    """
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    file = model_file(folder)
    if file is None:
        raise UserError(f"{folder} has no weights: it contains none of {', '.join(WEIGHT_FILES)}.")
    if not file.name.endswith(INDEX):
        check_weights(file)
        return
    shards = sorted(set(weight_map(file).values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
        raise UserError(
            f"{file} names {len(shards)} files, of which {len(missing)} are missing: "
            f"{', '.join(missing[:NUM_NAMED])}{more}; download or copy them again."
        )
    for name in shards:
        check_weights(folder / name)


def weight_names(folder: Path) -> list[str]:
    """The names of all weights in a whole model's folder, without reading them; empty if it has none.

    Raises UserError if the file that lists them is damaged.
    """
    file = model_file(folder)
    if file is None:
        return []
    if file.name.endswith(INDEX):
        return list(weight_map(file))
    if file.suffix == ".safetensors":
        check_weights(file)
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    return list(read_bin(file, mmap=True))


def read_weights(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """Read the named weights from a whole model's folder; only the shards that hold one are opened.

    Raises UserError if a file that holds one is missing or damaged.
    """
    source = model_file(folder)
    assert source is not None, folder
    files = {source.name}
    if source.name.endswith(INDEX):
        where = weight_map(source)
        files = {where[name] for name in names}
    found = {}
    for file in (folder / name for name in sorted(files)):
        if file.suffix == ".safetensors":
            check_weights(file)
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in names & set(opened.keys())}
        else:
            state = read_bin(file, mmap=True)
            found |= {name: state[name].clone() for name in names & set(state)}
    return found
