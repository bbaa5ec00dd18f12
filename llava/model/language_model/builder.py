"""Finds the language model class of a configuration. A new family needs a file and a line in FAMILIES."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llava.errors import UserError
from llava.model.files import read_json
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwen3ForCausalLM, LlavaQwenForCausalLM
from llava.model.vision_config import plain_type

FAMILIES: tuple[type[PreTrainedModel], ...] = (
    LlavaLlamaForCausalLM,
    LlavaMistralForCausalLM,
    LlavaQwenForCausalLM,
    LlavaQwen3ForCausalLM,
    LlavaMptForCausalLM,
)


# Maps the model_type of a plain language model or of a multimodal checkpoint to its class. LLaVA 1.0,
# TokenPacker and VisualPrism wrote "llava", with Llama's fields at the top level.
MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model_type: family
    for family in FAMILIES
    for model_type in (plain_type(family.config_class), family.config_class.model_type)
} | {"llava": LlavaLlamaForCausalLM}

for family in FAMILIES:  # the published model types for transformers' AutoConfig and AutoModelForCausalLM
    AutoConfig.register(family.config_class.model_type, family.config_class, exist_ok=True)
    AutoModelForCausalLM.register(family.config_class, family, exist_ok=True)


def config_of(saved: dict, file: Path) -> PretrainedConfig:
    """Make our class's configuration from the config.json of a language model or a multimodal checkpoint.

    Args:
        saved: the content of config.json.
        file: its path, for messages.
    Raises:
        UserError: if the family is unknown, or a value has the wrong type.
    """
    model_type = saved.get("model_type")
    if model_type not in MODEL_CLASSES:
        raise UserError(
            f"{file.parent} has model_type {model_type!r}; supported language models are "
            f"{', '.join(MODEL_CLASSES)}."
        )
    model_class = MODEL_CLASSES[model_type]
    try:
        return model_class.config_class.from_dict(
            {key: value for key, value in saved.items() if key != "model_type"}
        )
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a configuration of a {model_class.__name__} ({reason}).") from error


def read_config(path: str | Path) -> PretrainedConfig:
    """Read a folder's config.json by config_of.

    Raises UserError as config_of does, or if the file is missing or damaged.
    """
    file = Path(path) / "config.json"
    return config_of(read_json(file), file)


def type_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    return MODEL_CLASSES[config.model_type]
