"""Checks that all inputs of a run exist, in the seconds before it loads a model."""

import importlib.util
import json
from pathlib import Path

from llava.data.files import check_data_file, iter_records
from llava.data.forms import as_list
from llava.data.record import Picture
from llava.data.shards import check_data_paths, is_shards
from llava.data.tables import is_hub_name
from llava.errors import UserError
from llava.model.adapters import ADAPTER_WEIGHTS
from llava.model.files import WEIGHT_FILES
from llava.model.multimodal_encoder.builder import read_vision_config
from llava.model.plan import find_folder
from llava.train.flags import DataArguments, ModelArguments, TrainingFlags

PROCESSOR_FILE = "preprocessor_config.json"


def check_inputs(model: ModelArguments, data: DataArguments, training: TrainingFlags) -> None:
    """Look for every file, folder and package that the flags ask for, except the language model's.

    Raises:
        UserError: for the first one that is missing, with its flag.
    """
    if training.lora_enable:
        check_package("--lora_enable", "peft")
    if training.bits < 16:
        check_package(f"--bits {training.bits}", "bitsandbytes")
    files = [("--data_path", path) for path in data.data_path if not is_shards(path)]
    files += [("--eval_data_path", path) for path in data.eval_data_path or ()]
    for flag, path in files:
        if not Path(path).is_dir() and not is_hub_name(path):
            check_file(flag, path, "a file or a folder of records (docs/data.md)")
        check_data_file(path)
    check_data_paths(data.data_path)
    if data.image_folder is not None and not Path(data.image_folder).is_dir():
        for _, path in files:
            if needs_images(path):
                raise UserError(
                    f"--image_folder {data.image_folder} is not a folder, but records of {path} have images; "
                    "give the folder to which their paths are relative."
                )
    if model.pretrain_mm_mlp_adapter:
        advice = "the mm_projector.bin of stage 1, or run stage 1 (scripts/v1_5/pretrain.sh) first"
        check_file("--pretrain_mm_mlp_adapter", model.pretrain_mm_mlp_adapter, advice)
    if training.lora_weight_path:
        start = find_folder(training.lora_weight_path, "--lora_weight_path", training.cache_dir)
        if not any((start / name).is_file() for name in ADAPTER_WEIGHTS):
            raise UserError(
                f"--lora_weight_path {start} contains no adapters ({' or '.join(ADAPTER_WEIGHTS)})."
            )
    if model.vision_tower:
        check_vision_tower(model.vision_tower, model.model_name_or_path)


def check_package(flag: str, package: str) -> None:
    """Raises UserError unless the package is installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{flag} needs {package}, which is not installed; run pip install -e '.[train]'.")


def check_file(flag: str, path: str, expected: str) -> None:
    """Raises UserError unless there is such a file."""
    if not Path(path).is_file():
        problem = "is a folder" if Path(path).is_dir() else "does not exist"
        raise UserError(f"{flag} {path} {problem}; give {expected}.")


def check_json(flag: str, path: str, expected: str) -> None:
    """Raises UserError unless there is such a file, and it holds JSON."""
    check_file(flag, path, expected)
    try:
        json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path} cannot be read as JSON ({error}); give {expected}.") from error


def needs_images(path: str) -> bool:
    """Whether some record has an image in a separate file; reads only up to the first such record."""
    return any(
        isinstance(record, dict)
        and any(not isinstance(file, Picture) for file in as_list(record.get("image")))
        for record in iter_records(path)
    )


def check_vision_tower(name_or_path: str, model: str) -> None:
    """Raises UserError unless this is a vision tower; a local folder must have the files that the run reads.

    Args:
        model: --model_name_or_path; if it has an image processor, this is used instead of the tower's.
    """
    read_vision_config(name_or_path)
    tower = Path(name_or_path)
    if not tower.is_dir():  # on the hub, only the configuration is checked
        return
    if not any((tower / name).is_file() for name in WEIGHT_FILES):
        raise UserError(
            f"--vision_tower {tower} has no weights: it contains none of {', '.join(WEIGHT_FILES)}."
        )
    if Path(model).is_dir() and not any(
        (Path(source) / PROCESSOR_FILE).is_file() for source in (tower, model)
    ):
        raise UserError(
            f"--vision_tower {tower} has no {PROCESSOR_FILE}, the settings of its image processor; copy this "
            "file from the source of the tower."
        )
