"""CheckpointPlan: what a folder holds, determined once from its files and never from its name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llava.errors import UserError
from llava.loading import default_dtype
from llava.model.adapters import read_adapter_config, read_trainables
from llava.model.checkpoint import (
    ADAPTER_CONFIG,
    PROJECTOR_FILE,
    TRAINABLES_FILE,
    cut_to_projector,
    is_of_projector,
    projector_state,
    read_projector,
)
from llava.model.files import (
    AGAIN,
    INDEX,
    WEIGHT_FILES,
    first_line,
    model_file,
    read_json,
    read_weights,
    weight_names,
)
from llava.model.language_model.builder import MODEL_CLASSES, config_of
from llava.model.multimodal_projector.builder import projector_type_of

NOT_FETCHED = ("*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "original/*")  # other programs' weights


class Kind(Enum):
    """The kind of weights in a folder; the value is its description."""

    MODEL = "a whole model"
    PROJECTOR = "stage 1's projector"
    ADAPTERS = "LoRA's adapters"


@dataclass(frozen=True)
class CheckpointPlan:
    """A checkpoint folder. Each of its files is read once, when it is first needed.

    Attributes:
        path: the folder.
        kind: the kind of its weights; None if it has none.
    """

    path: Path
    kind: Kind | None

    @cached_property
    def saved(self) -> dict:
        """The content of config.json; empty if there is none. Raises UserError if it is damaged."""
        file = self.path / "config.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def weights(self) -> list[str]:
        """Names of a whole model's weights, if there are any. Raises UserError if their list is damaged."""
        return weight_names(self.path)

    @cached_property
    def learned(self) -> dict[str, Tensor]:
        """The trained weights that are stored without a whole model; may be empty.

        They are stage 1's projector by its own names, or the weights trained beside adapters by the plain
        model's names.

        Raises UserError if the file is damaged, or the projector's is missing.
        """
        if self.kind is Kind.PROJECTOR:
            return read_projector(self.path / PROJECTOR_FILE)
        has_trainables = self.kind is Kind.ADAPTERS and (self.path / TRAINABLES_FILE).is_file()
        return read_trainables(self.path) if has_trainables else {}

    @cached_property
    def projector_weights(self) -> list[str]:
        """Names of the projector's weights, as the projector names them; empty if there is none."""
        if self.kind is Kind.PROJECTOR:
            return list(self.learned)
        return cut_to_projector(self.weights if self.kind is Kind.MODEL else list(self.learned))

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration of our class, with the projector type that the weights have.

        Raises UserError if config.json is missing or damaged, its family is unknown, or a value has the wrong
        type.
        """
        file = self.path / "config.json"
        config = config_of(self.saved or read_json(file), file)
        if config.mm_vision_tower is not None:
            declared = self.saved.get("mm_projector_type")
            config.mm_projector_type = projector_type_of(self.projector_weights, declared, str(self.path))
        return config

    @property
    def sees(self) -> bool:
        """Whether it has a vision tower."""
        return self.config.mm_vision_tower is not None

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return MODEL_CLASSES[self.config.model_type]

    @cached_property
    def adapters(self):
        """peft's LoraConfig of the adapters. Raises UserError if it is damaged or of another kind."""
        return read_adapter_config(self.path)

    @property
    def has_tokenizer(self) -> bool:
        return any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))

    @property
    def has_image_processor(self) -> bool:
        return (self.path / "preprocessor_config.json").is_file()

    def dtype(self, device: torch.device | str) -> torch.dtype:
        """The dtype of the model on that device if the caller asks for none."""
        return default_dtype(self.saved, device)

    def read_projector(self) -> dict[str, Tensor]:
        """Read the projector of a whole model as it was saved, by its own names, and image_newline."""
        names = {name for name in self.weights if is_of_projector(name)}
        return projector_state(read_weights(self.path, names))


def find_folder(name_or_path: str | Path, flag: str, cache_dir: str | None = None) -> Path:
    """Return the folder itself, or download the hub repository of that name into the cache.

    Raises UserError, which names the flag, if there is neither or the hub cannot be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(name_or_path), cache_dir=cache_dir, ignore_patterns=[*NOT_FETCHED]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{flag} {str(name_or_path)!r} is not a folder, and it cannot be fetched from the hub "
            f"({first_line(error)}); give the folder that training wrote, or a hub name."
        ) from error


def look_at(path: Path) -> CheckpointPlan:
    """The plan of a folder, whatever it holds."""
    if (path / ADAPTER_CONFIG).is_file():
        return CheckpointPlan(path, Kind.ADAPTERS)
    if model_file(path) is not None:
        return CheckpointPlan(path, Kind.MODEL)
    return CheckpointPlan(path, Kind.PROJECTOR if (path / PROJECTOR_FILE).is_file() else None)


def plan_checkpoint(
    name_or_path: str | Path, flag: str = "--model-path", cache_dir: str | None = None
) -> CheckpointPlan:
    """The plan of a folder or hub repository that has a configuration and weights.

    Raises:
        UserError: if there is no folder, no config.json that can be read, or no weights.
    """
    path = find_folder(name_or_path, flag, cache_dir)
    plan = look_at(path)
    if not plan.saved:
        raise UserError(f"{path} has no config.json; it contains {sorted(f.name for f in path.iterdir())}.")
    if plan.kind is None:
        shards = sorted(file.name for file in path.glob("*-of-*") if file.suffix in (".safetensors", ".bin"))
        if shards:
            raise UserError(
                f"{path} has shards ({shards[0]}, ...), but not the *{INDEX} that lists them; {AGAIN}"
            )
        raise UserError(
            f"{path} has no weights: it contains neither {WEIGHT_FILES[0]} (a whole model) nor "
            f"{PROJECTOR_FILE} (stage 1) nor {ADAPTER_CONFIG} (LoRA)."
        )
    return plan
