"""load_pretrained_model: tokenizer, model and image processor of a folder, decided by its files alone."""

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from llava.model.checkpoint import (
    NEWLINE,
    PROJECTOR_FILE,
    SAVED_CONSTANTS,
    CheckpointFolder,
    cut_to_projector,
    inspect_folder,
    load_projector,
    projector_type_of,
    read_projector,
    weight_names,
)
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwen3ForCausalLM, LlavaQwenForCausalLM
from llava.model.multimodal_encoder.builder import load_image_processor, load_vision_weights
from llava.model.tokenizer import load_tokenizer, separator_ids
from llava.model.vision_config import VisionFields

logger = logging.getLogger(__name__)

# By model_type, of a plain language model or of a multimodal checkpoint. "llava" is what LLaVA 1.0,
# TokenPacker and VisualPrism wrote, with Llama's fields at the top level.
MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "llama": LlavaLlamaForCausalLM,
    "llava_llama": LlavaLlamaForCausalLM,
    "llava": LlavaLlamaForCausalLM,
    "mistral": LlavaMistralForCausalLM,
    "llava_mistral": LlavaMistralForCausalLM,
    "qwen2": LlavaQwenForCausalLM,
    "llava_qwen": LlavaQwenForCausalLM,
    "qwen3": LlavaQwen3ForCausalLM,
    "llava_qwen3": LlavaQwen3ForCausalLM,
    "mpt": LlavaMptForCausalLM,
    "llava_mpt": LlavaMptForCausalLM,
}
DEFAULT_CONTEXT_LENGTH = 2048


def register_configs() -> None:
    """Teach transformers' AutoConfig and AutoModelForCausalLM the published model types."""
    from transformers import AutoModelForCausalLM

    for model_type, model_class in MODEL_CLASSES.items():
        if model_type == model_class.config_class.model_type:
            AutoConfig.register(model_type, model_class.config_class, exist_ok=True)
            AutoModelForCausalLM.register(model_class.config_class, model_class, exist_ok=True)


register_configs()


def model_class_of(model_type: str | None, source: str) -> type[PreTrainedModel]:
    """The class for a config.json's model_type.

    Raises:
        ValueError: if the family is unknown.
    """
    if model_type not in MODEL_CLASSES:
        raise ValueError(
            f"{source} is of model_type {model_type!r}; known language models are {', '.join(MODEL_CLASSES)}."
        )
    return MODEL_CLASSES[model_type]


def read_config(path: str | Path, model_class: type[PreTrainedModel] | None = None) -> PretrainedConfig:
    """config.json of a language model or of a multimodal checkpoint, as our class's configuration."""
    raw, _ = PretrainedConfig.get_config_dict(str(path))
    model_class = model_class or model_class_of(raw.get("model_type"), str(path))
    raw.pop("model_type", None)
    return model_class.config_class.from_dict(raw)


def attach_vision(model: PreTrainedModel, fields: VisionFields) -> None:
    """Give a language model eyes: a tower with its published weights, a freshly initialised projector.

    Args:
        model: one of MODEL_CLASSES, without vision.
        fields: what to build; its multimodal keys are copied into model.config.
    """
    for name in VisionFields.__dataclass_fields__:
        setattr(model.config, name, getattr(fields, name))
    like = model.get_input_embeddings().weight
    model.get_model().build_vision(model.config)
    for part in (model.get_vision_tower(), model.get_projector()):
        part.to(device=like.device, dtype=like.dtype)
    if hasattr(model.get_model(), NEWLINE):
        model.get_model().image_newline.data = model.get_model().image_newline.to(like)
    load_vision_weights(model.get_vision_tower(), model.config.mm_vision_tower)
    model.get_vision_tower().requires_grad_(False)


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    **kwargs,
):
    """Load what a training stage wrote.

    Args:
        model_path: a folder with a whole model, or with stage 1's mm_projector.bin and config.json.
        model_base: the language model a projector belongs to; needed for the latter alone.
        model_name: taken for compatibility; nothing is decided by a name.
        load_8bit, load_4bit: quantise the language model with bitsandbytes.
        device_map: as in transformers; by default everything on `device`.
        device: "cuda", "mps" or "cpu"; by default the first of these there is.
        attn_implementation: as in transformers.
        torch_dtype: by default float32 on the CPU, float16 elsewhere.
        kwargs: what older callers pass; use_flash_attn is flash_attention_2, multimodal changes nothing.
    Returns:
        (tokenizer, model in eval mode, image_processor or None for a text-only model, context_len in tokens).
    Raises:
        ValueError: if files are missing or do not fit one another; each is named.
    """
    unknown = set(kwargs) - {"use_flash_attn", "multimodal"}
    if unknown:
        raise ValueError(f"load_pretrained_model does not take {', '.join(sorted(unknown))}.")
    if kwargs.get("use_flash_attn"):
        attn_implementation = attn_implementation or "flash_attention_2"
    folder = inspect_folder(model_path)
    device = device or default_device()
    dtype = torch_dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.float16)
    options = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        **quantization(load_8bit, load_4bit),
    }
    if device_map is not None and torch.device(device).type != "cpu":
        options["device_map"] = device_map
    if folder.has_model:
        model = load_whole_model(folder, options)
        tokenizer_source = folder.path
    else:
        model = load_projector_over_base(folder, model_base, options)
        tokenizer_source = model_base
    if "device_map" not in options and "quantization_config" not in options:
        model.to(device)
    model.eval()
    tokenizer = load_tokenizer(tokenizer_source, padding_side="left")
    if model.config.slice_separator_ids is None:
        model.config.slice_separator_ids = separator_ids(tokenizer)
    context_length = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT_LENGTH
    return tokenizer, model, image_processor_of(model, folder.path), context_length


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def quantization(load_8bit: bool, load_4bit: bool) -> dict:
    """transformers' options for bitsandbytes weights; the vision parts stay as they are."""
    if not (load_8bit or load_4bit):
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=["vision_tower", "mm_projector", "lm_head"],
        )
    }


def load_whole_model(folder: CheckpointFolder, options: dict) -> PreTrainedModel:
    """A folder with all weights; the tower's may also lie where config.json's mm_vision_tower says."""
    model_class = model_class_of(folder.config.get("model_type"), str(folder.path))
    config = read_config(folder.path, model_class)
    names = cut_to_projector(weight_names(folder.path))
    config.mm_projector_type = projector_type_of(
        names, folder.config.get("mm_projector_type"), str(folder.path)
    )
    model, info = model_class.from_pretrained(
        folder.path, config=config, output_loading_info=True, use_safetensors=None, **options
    )
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    missing_tower = {key for key in missing if key.startswith(f"{model.base_model_prefix}.vision_tower.")}
    mask_token = {key for key in missing_tower if key.endswith("mask_token")}
    if missing_tower - mask_token:
        load_vision_weights(model.get_vision_tower(), config.mm_vision_tower)
    problems = [f"missing {key}" for key in sorted(missing - missing_tower)]
    problems += [f"unexpected {key}" for key in sorted(unexpected) if not key.endswith(SAVED_CONSTANTS)]
    problems += [f"mis-shaped {key}" for key in sorted(str(key) for key in info["mismatched_keys"])]
    if problems:
        raise ValueError(f"{folder.path} does not fit its config.json: {'; '.join(problems[:20])}.")
    return model


def load_projector_over_base(
    folder: CheckpointFolder, model_base: str | None, options: dict
) -> PreTrainedModel:
    """Stage 1's folder: its projector and multimodal keys over the language model it was trained on."""
    if model_base is None:
        raise ValueError(
            f"{folder.path} holds only {PROJECTOR_FILE}; "
            "name the language model it was trained on with --model-base."
        )
    fields = read_config(folder.path)
    state = read_projector(folder.path / PROJECTOR_FILE)
    declared = folder.config.get("mm_projector_type")
    fields.mm_projector_type = projector_type_of(list(state), declared, str(folder.path))
    base = read_config(model_base)
    model = type_of(base).from_pretrained(model_base, config=base, **options)
    attach_vision(model, fields)
    load_projector(model, state, str(folder.path))
    return model


def type_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    return MODEL_CLASSES[config.model_type]


def image_processor_of(model: PreTrainedModel, path: Path | None = None):
    """The folder's own image processor if it has one, else the tower's; None for a text-only model."""
    tower = model.get_vision_tower()
    if tower is None:
        return None
    own = path is not None and (path / "preprocessor_config.json").is_file()
    source = path if own else model.config.mm_vision_tower
    return load_image_processor(str(source), tower.image_size)
