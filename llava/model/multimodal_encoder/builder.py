"""Builds the vision tower that a configuration asks for, and loads its weights and image processor."""

import logging
from pathlib import Path

from transformers import AutoConfig

# Not from the top level, where transformers 5.17 hides it if torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from llava.errors import UserError
from llava.model.compatibility import differences, tower_settings
from llava.model.files import check_model, first_line, read_json
from llava.model.multimodal_encoder.clip import CLIPVisionTower
from llava.model.multimodal_encoder.dinov2 import Dinov2VisionTower
from llava.model.multimodal_encoder.siglip import Siglip2VisionTower, SiglipVisionTower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.vision_config import CommonFields
from llava.model.zero3 import gathered

logger = logging.getLogger(__name__)

PROCESSOR_FILE = "preprocessor_config.json"

VISION_TOWERS: dict[str, type[VisionTower]] = {
    "clip_vision_model": CLIPVisionTower,
    "siglip_vision_model": SiglipVisionTower,
    "siglip2_vision_model": Siglip2VisionTower,
    "dinov2": Dinov2VisionTower,
}


def read_vision_config(name_or_path: str) -> dict:
    """Read a tower's configuration; from a text-and-image model (CLIP, SigLIP) only the vision part.

    Raises UserError if there is none, or it is damaged.
    """
    if (Path(name_or_path) / "config.json").is_file():
        read_json(Path(name_or_path) / "config.json")
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--vision_tower {name_or_path!r} has no readable config.json ({first_line(error)}); "
            "give a folder or a hub name of a CLIP, SigLIP or DINOv2 model."
        ) from error
    return getattr(config, "vision_config", config).to_dict()


def build_vision_tower(
    fields: CommonFields, needs_levels: bool, needs_attention: bool = False
) -> VisionTower:
    """Build an untrained tower of the configured shape; the caller loads its weights.

    If fields.mm_vision_config is None, it is filled from fields.mm_vision_tower.

    Raises UserError if the family is unknown.
    """
    if fields.mm_vision_config is None:
        fields.mm_vision_config = read_vision_config(fields.mm_vision_tower)  # type: ignore[arg-type]
    family = fields.mm_vision_config.get("model_type")
    if family not in VISION_TOWERS:
        raise UserError(
            f"--vision_tower {fields.mm_vision_tower!r} has model_type {family!r}; "
            f"supported types are {', '.join(VISION_TOWERS)}."
        )
    return VISION_TOWERS[family](fields, needs_levels, needs_attention)


def load_vision_weights(tower: VisionTower, name_or_path: str) -> None:
    """Load the tower's weights from a folder or hub name.

    Raises UserError if files are missing or damaged, if weights are missing, or if a folder's config.json is
    that of another tower.
    """
    if Path(name_or_path).is_dir():
        check_model(Path(name_or_path))
        if (Path(name_or_path) / "config.json").is_file():
            found = tower_settings(read_vision_config(name_or_path))
            if problems := differences(tower_settings(tower.config.to_dict()), found):
                raise UserError(
                    f"--vision_tower {name_or_path!r} is not the tower of this model: {'; '.join(problems)}. "
                    "Give the tower that it was trained with."
                )
    source, info = tower.model_class.from_pretrained(
        name_or_path, config=tower.config, dtype=tower.dtype, output_loading_info=True
    )
    mask_token = {"embeddings.mask_token"}  # DINOv2 uses it only in its own training
    missing = sorted(set(info["missing_keys"]) - mask_token)
    if missing:
        raise UserError(f"--vision_tower {name_or_path!r} lacks weights: {', '.join(missing)}.")
    with gathered(source.parameters()), gathered(tower.parameters(), write=True):
        tower.vision_tower.load_state_dict(source.state_dict())
    logger.info("vision tower: %s from %s", type(tower).__name__, name_or_path)


def load_image_processor(name_or_path: str, image_size: int):
    """Load the image processor of a folder for image_size x image_size pixels, with PIL's arithmetic.

    Raises UserError if there is none, or it is damaged.
    """
    if (Path(name_or_path) / PROCESSOR_FILE).is_file():
        read_json(Path(name_or_path) / PROCESSOR_FILE)
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name_or_path} has no image processor that can be read ({first_line(error)}); copy "
            f"{PROCESSOR_FILE} from the source of the vision tower."
        ) from error
    square = {"height": image_size, "width": image_size}
    if "shortest_edge" in processor.size:
        processor.size = {"shortest_edge": image_size}
        processor.crop_size = square
    else:
        processor.size = square
    return processor
