"""The tower's hidden states of every picture, computed once and shared by all rows of a study."""

# n pictures, N patches, C tower width, K hidden states

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from llava.mm_utils import load_image
from llava.model.multimodal_encoder.builder import (
    build_vision_tower,
    load_image_processor,
    load_vision_weights,
    read_vision_config,
)
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.builder import VisionFields
from llava.model.vision_config import resolve_levels, resolve_select_layer
from llava.wholefile import write_text

BATCH = 16  # pictures that the tower encodes at once


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states `indices` of a tower with `depth` layers, as bfloat16[n, N, K*C]."""

    values: Tensor
    indices: tuple[int, ...]
    depth: int

    @property
    def width(self) -> int:
        """C."""
        return self.values.shape[-1] // len(self.indices)

    def to(self, device: str) -> "HiddenStates":
        return HiddenStates(self.values.to(device), self.indices, self.depth)

    def features(self, pictures: Tensor, fields: VisionFields) -> VisionFeatures:
        """The features that a tower with these fields gives for the pictures with indices long[B]."""
        values = self.values[pictures]
        levels = resolve_levels(fields.mm_vision_levels, self.depth, fields.mm_vision_select_layer)
        selected = self._state(values, resolve_select_layer(fields.mm_vision_select_layer, self.depth))
        if tuple(levels) == self.indices:
            return VisionFeatures(selected, values)
        return VisionFeatures(selected, torch.cat([self._state(values, level) for level in levels], dim=-1))

    def _state(self, values: Tensor, index: int) -> Tensor:
        start = self.indices.index(index) * self.width
        return values[..., start : start + self.width]


def hidden_states(
    pictures: Sequence[Path],
    tower_path: Path,
    rows: Sequence[VisionFields],
    size: int,
    folder: Path,
    device: str,
) -> HiddenStates:
    """Read the states that `rows` need from `folder`, or compute them and write them there.

    Args:
        pictures: paths, in the order of the states.
        tower_path: folder of the tower.
        size: side of the tower's input in pixels.
        device: where the states are computed; the result is a memory-mapped file.
    Raises:
        UserError: if the tower or a picture cannot be read.
    """
    config = read_vision_config(str(tower_path))
    depth = config["num_hidden_layers"]
    indices = tuple(sorted({index for row in rows for index in _needed(row, depth)}))
    fields = VisionFields(
        mm_vision_tower=str(tower_path),
        mm_vision_config=config,
        mm_vision_image_size=size,
        mm_vision_select_layer=indices[-1],
        mm_vision_levels=list(indices),
    )
    shape = (len(pictures), (size // config["patch_size"]) ** 2, len(indices) * config["hidden_size"])
    about = {"indices": list(indices), "shape": list(shape), "tower": str(tower_path), "size": size}
    path, described = folder / "states.bfloat16", folder / "states.json"
    if not (described.exists() and json.loads(described.read_text()) == about):
        folder.mkdir(parents=True, exist_ok=True)
        described.unlink(missing_ok=True)
        tower = build_vision_tower(fields, needs_levels=True)
        load_vision_weights(tower, str(tower_path))
        _compute(tower.to(device).eval(), pictures, tower_path, size, _mapped(path, shape, write=True))
        write_text(described, json.dumps(about))  # last, since it marks the file beside it as complete
    return HiddenStates(_mapped(path, shape), indices, depth)


def _needed(fields: VisionFields, depth: int) -> list[int]:
    layer = fields.mm_vision_select_layer
    return [*resolve_levels(fields.mm_vision_levels, depth, layer), resolve_select_layer(layer, depth)]


def _mapped(path: Path, shape: tuple[int, ...], write: bool = False) -> Tensor:
    """A file as a memory-mapped tensor bfloat16[shape]."""
    size = shape[0] * shape[1] * shape[2]
    return torch.from_file(str(path), shared=write, size=size, dtype=torch.bfloat16).view(shape)


@torch.inference_mode()
def _compute(tower, pictures: Sequence[Path], tower_path: Path, size: int, out: Tensor) -> None:
    processor = load_image_processor(str(tower_path), size)
    with torch.autocast(tower.device.type, torch.bfloat16):
        for start in tqdm(range(0, len(pictures), BATCH), desc="vision tower"):
            images = [load_image(str(path)) for path in pictures[start : start + BATCH]]
            pixels = processor(images, return_tensors="pt")["pixel_values"].to(tower.device)
            out[start : start + len(images)] = tower(pixels).levels.to(out)
