"""load_pretrained_model: tokenizer, model and image processor of a folder, decided by its files alone.

One file of some 400 lines: each kind of folder is another way to the same model, and they share their steps.
"""

import logging
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from llava.errors import UserError
from llava.loading import default_dtype
from llava.model.adapters import (
    adapter_file,
    has_words,
    load_trainables,
    merge_adapters,
    read_adapter_config,
    read_trainables,
)
from llava.model.checkpoint import (
    NEWLINE,
    PROJECTOR_FILE,
    SAVED_CONSTANTS,
    TRAINABLES_FILE,
    CheckpointFolder,
    cut_to_projector,
    inspect_folder,
    is_of_projector,
    load_projector,
    projector_state,
    read_projector,
)
from llava.model.checkpoint import find_folder as find_folder  # for rooms that know the model through here
from llava.model.compatibility import check_base, note_other_name
from llava.model.files import check_model, read_json, read_weights, weight_names
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwen3ForCausalLM, LlavaQwenForCausalLM
from llava.model.multimodal_encoder.builder import load_image_processor, load_vision_weights
from llava.model.multimodal_projector.builder import VisionFields, projector_type_of
from llava.model.tokenizer import load_tokenizer, separator_ids

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
        UserError: if the family is unknown.
    """
    if model_type not in MODEL_CLASSES:
        raise UserError(
            f"{source} is of model_type {model_type!r}; known language models are {', '.join(MODEL_CLASSES)}."
        )
    return MODEL_CLASSES[model_type]


def read_config(path: str | Path, model_class: type[PreTrainedModel] | None = None) -> PretrainedConfig:
    """config.json of a language model or of a multimodal checkpoint, as our class's configuration.

    Raises:
        UserError: if it is missing or damaged, the family is unknown, or a value has the wrong type.
    """
    file = Path(path) / "config.json"
    raw = read_json(file)
    model_class = model_class or model_class_of(raw.get("model_type"), str(path))
    raw.pop("model_type", None)
    try:
        return model_class.config_class.from_dict(raw)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no configuration of a {model_class.__name__} ({reason}).") from error


def seeing_config(path: Path, names: list[str]) -> PretrainedConfig:
    """A folder's configuration, with the type of projector that its weights have.

    Args:
        names: of the projector's weights, cut to its own.
    """
    config = read_config(path)
    declared = read_json(path / "config.json").get("mm_projector_type")
    config.mm_projector_type = projector_type_of(names, declared, str(path))
    return config


def checkpoint_config(folder: CheckpointFolder) -> PretrainedConfig:
    """A whole model's configuration; where it sees, with the type of projector that its weights have."""
    if folder.config.get("mm_vision_tower") is None:
        return read_config(folder.path)
    return seeing_config(folder.path, cut_to_projector(weight_names(folder.path)))


def copy_fields(config: PretrainedConfig, fields: VisionFields) -> None:
    for name in VisionFields.__dataclass_fields__:
        setattr(config, name, getattr(fields, name))


def attach_vision(
    model: PreTrainedModel, fields: VisionFields, projector_dtype: torch.dtype | None = None
) -> None:
    """Give a language model eyes: a tower with its published weights, a freshly initialised projector.

    Args:
        model: one of MODEL_CLASSES, without vision.
        fields: what to build; its multimodal keys are copied into model.config.
        projector_dtype: by default the language model's.
    """
    copy_fields(model.config, fields)
    like = model.get_input_embeddings().weight
    model.get_model().build_vision(model.config)
    projector_dtype = projector_dtype or like.dtype
    model.get_vision_tower().to(device=like.device, dtype=like.dtype)
    model.get_projector().to(device=like.device, dtype=projector_dtype)
    if hasattr(model.get_model(), NEWLINE):
        newline = model.get_model().image_newline
        newline.data = newline.to(device=like.device, dtype=projector_dtype)
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
    compile_vision: bool = False,
    **kwargs,
):
    """Load what a training stage wrote.

    Args:
        model_path: a folder or hub name: a whole model, stage 1's mm_projector.bin and config.json, or
            LoRA's adapter_config.json, adapters and non_lora_trainables.bin.
        model_base: the model that the latter two were trained on; adapters by default name it themselves.
        model_name: taken for compatibility; nothing is decided by a name.
        load_8bit, load_4bit: quantise the language model with bitsandbytes; adapters then stay beside it,
            else they are merged into it.
        device_map: as in transformers; by default everything on `device`.
        device: "cuda", "mps" or "cpu"; by default the first of these there is.
        attn_implementation: of the language model, as in transformers.
        torch_dtype: of weights and arithmetic; by default float32 on a CPU, and on a GPU config.json's dtype,
            but bfloat16 in place of float32, and float16 in place of bfloat16 where the GPU lacks it
            (llava.loading.default_dtype). "auto" is config.json's on every device. Quantised weights are
            computed with in this dtype.
        compile_vision: encode images by one compiled graph.
        kwargs: what older callers pass; use_flash_attn is flash_attention_2, multimodal changes nothing.
    Returns:
        (tokenizer, model in eval mode, image_processor or None for a text-only model, context_len in tokens).
    Raises:
        UserError: if files are missing or do not fit one another, each being named; or if the attention
            implementation cannot be used here.
    """
    unknown = set(kwargs) - {"use_flash_attn", "multimodal"}
    if unknown:
        raise UserError(f"load_pretrained_model does not take {', '.join(sorted(unknown))}.")
    if kwargs.get("use_flash_attn"):
        attn_implementation = attn_implementation or "flash_attention_2"
    folder = inspect_folder(model_path)
    device = device or default_device()
    own_dtype = default_dtype(folder.config, device)
    dtype = torch_dtype or own_dtype
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    if load_8bit or load_4bit:
        computed = getattr(torch, dtype, own_dtype) if isinstance(dtype, str) else dtype  # "auto" names none
        options |= quantization(4 if load_4bit else 8, computed)
    if device_map is not None and torch.device(device).type != "cpu":
        options["device_map"] = device_map
    tokenizer_source = folder.path
    if folder.has_adapters:
        model, tokenizer_source = load_adapters_over_base(folder, model_base, options)
    elif folder.has_model:
        model = load_whole_model(folder, options)
    else:
        model, tokenizer_source = load_projector_over_base(folder, model_base, options)
    if "device_map" not in options and "quantization_config" not in options:
        model.to(device)
    model.eval()
    if compile_vision and model.get_vision_tower() is not None:
        model.compile_vision()
    tokenizer = load_tokenizer(tokenizer_source, padding_side="left")
    if model.config.slice_separator_ids is None:
        model.config.slice_separator_ids = separator_ids(tokenizer)
    context_length = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT_LENGTH
    return tokenizer, model, image_processor_of(model, folder.path), context_length


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def quantization(bits: int, dtype: torch.dtype, double_quant: bool = True, quant_type: str = "nf4") -> dict:
    """transformers' options for bitsandbytes weights; vision parts and head stay as they are.

    Args:
        bits: 4 or 8.
        dtype: to compute in.
    """
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            # patterns from a module's name's start on: their parts are linear maps, too
            llm_int8_skip_modules=[r"[^.]+\.vision_tower", r"[^.]+\.mm_projector", "lm_head"],
        )
    }


def load_whole_model(
    folder: CheckpointFolder, options: dict, fields: VisionFields | None = None
) -> PreTrainedModel:
    """A folder with all weights; the tower's may also lie where config.json's mm_vision_tower says.

    Args:
        fields: multimodal keys in place of config.json's.
    """
    check_model(folder.path)
    config = checkpoint_config(folder)
    if fields is not None:
        copy_fields(config, fields)
    model, info = type_of(config).from_pretrained(
        folder.path,
        config=config,
        output_loading_info=True,
        use_safetensors=None,
        ignore_mismatched_sizes=True,  # they are listed below
        **options,
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
        raise UserError(f"{folder.path} does not fit its config.json: {'; '.join(problems[:20])}.")
    return model


def load_with_vision(
    folder: CheckpointFolder,
    fields: VisionFields,
    options: dict,
    projector_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A multimodal checkpoint with its own eyes, a language model with new ones.

    Args:
        fields: what the eyes are; of a checkpoint's own they change what needs no other weights.
        projector_dtype: by default the language model's.
    Raises:
        UserError: if the folder holds no whole model, or its weights do not fit.
    """
    if not folder.has_model:
        raise UserError(
            f"{folder.path} holds no language model; give the one that its weights were trained on, "
            "or merge adapters with scripts/merge_lora_weights.py first."
        )
    if read_config(folder.path).mm_vision_tower is not None:
        model = load_whole_model(folder, options, fields)
        if projector_dtype is not None and next(model.get_projector().parameters(), None) is not None:
            model.get_projector().to(projector_dtype)
            newline = getattr(model.get_model(), NEWLINE, None)
            if newline is not None:
                newline.data = newline.to(projector_dtype)
            # Read again: rounded to the language model's type, it would not be what was trained
            names = {name for name in weight_names(folder.path) if is_of_projector(name)}
            state = projector_state(read_weights(folder.path, names))
            load_projector(model, state, str(folder.path))
        return model
    model = load_whole_model(folder, options)
    attach_vision(model, fields, projector_dtype)
    return model


def load_projector_over_base(
    folder: CheckpointFolder, model_base: str | None, options: dict
) -> tuple[PreTrainedModel, Path]:
    """Stage 1's folder: its projector and multimodal keys over the model it was trained on.

    Returns:
        the model, and the folder of its tokenizer.
    """
    if model_base is None:
        raise UserError(
            f"{folder.path} holds only {PROJECTOR_FILE}; "
            "name the language model it was trained on with --model-base."
        )
    base = inspect_folder(model_base, "--model-base")
    state = read_projector(folder.path / PROJECTOR_FILE)
    fields = seeing_config(folder.path, list(state))
    check_base(fields, checkpoint_config(base), str(folder.path), f"--model-base {model_base}")
    model = load_with_vision(base, fields, options)
    load_projector(model, state, str(folder.path))
    return model, base.path


def load_adapters_over_base(
    folder: CheckpointFolder, model_base: str | None, options: dict
) -> tuple[PreTrainedModel, Path]:
    """LoRA's folder: its adapters, and what learnt beside them, over the model they were trained on.

    Returns:
        the model, and the folder of its tokenizer.
    """
    named = read_adapter_config(folder.path).base_model_name_or_path
    if not (model_base or named):
        raise UserError(
            f"{folder.path} holds adapters and does not name the model they were trained on; "
            "give it with --model-base."
        )
    flag = "--model-base" if model_base else f"--model-base is missing, and {folder.path} names"
    base = inspect_folder(model_base or named, flag)
    adapter_file(folder.path)  # read after the base, which may take minutes
    state = read_trainables(folder.path) if (folder.path / TRAINABLES_FILE).is_file() else {}
    fields = seeing_config(folder.path, cut_to_projector(list(state)))
    base_config = checkpoint_config(base)
    check_base(fields, base_config, str(folder.path), f"{flag} {base.path}", has_words(state))
    if model_base:
        note_other_name(named, model_base, str(folder.path), flag)
    model = load_with_vision(base, fields, options)
    base_sees = base_config.mm_vision_tower is not None
    load_trainables(model, state, str(folder.path / TRAINABLES_FILE), complete=not base_sees)
    own_tokenizer = any((folder.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return merge_adapters(model, folder.path), folder.path if own_tokenizer else base.path


def check_start(folder: Path, state: dict, config: PretrainedConfig, name_or_path: str) -> None:
    """Refuse a training run that starts from adapters of another model than its own.

    Where no config.json is beside the adapters, shapes alone decide.

    Args:
        folder: the adapters'.
        state: what learnt beside them, perhaps nothing.
        config: the model's, its tower built.
        name_or_path: the run's --model_name_or_path.
    Raises:
        UserError: with each key that differs and both values.
    """
    if not (folder / "config.json").is_file():
        return
    names = cut_to_projector(list(state))
    given = f"--model_name_or_path {name_or_path}"
    source = f"--lora_weight_path {folder}"
    check_base(seeing_config(folder, names), config, source, given, has_words(state), bool(names))
    named = read_adapter_config(folder).base_model_name_or_path
    note_other_name(named, name_or_path, str(folder), "--model_name_or_path")


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
