"""load_pretrained_model loads a folder's tokenizer, model and image processor; only its files decide how."""

import copy
import logging
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from llava.errors import UserError
from llava.model.adapters import adapter_file, has_words, load_trainables, merge_adapters
from llava.model.checkpoint import NEWLINE, PROJECTOR_FILE, TRAINABLES_FILE, load_projector
from llava.model.compatibility import check_base, note_other_name
from llava.model.files import check_model
from llava.model.multimodal_encoder.builder import load_image_processor, load_vision_weights
from llava.model.multimodal_projector.builder import VisionFields, copy_fields
from llava.model.plan import CheckpointPlan, Kind, plan_checkpoint
from llava.model.tokenizer import load_tokenizer, separator_ids

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 2048
# Constants that older versions of transformers saved; today they are computed.
SAVED_CONSTANTS = ("rotary_emb.inv_freq", "embeddings.position_ids")


def attach_vision(
    model: PreTrainedModel, fields: VisionFields, projector_dtype: torch.dtype | None = None
) -> None:
    """Add a vision tower with its published weights and a freshly initialised projector to a language model.

    Args:
        model: a model without vision, of one of the classes in language_model.builder.FAMILIES.
        fields: what to build; its multimodal keys are copied into model.config.
        projector_dtype: by default the language model's.
    """
    copy_fields(model.config, fields)
    like = model.get_input_embeddings().weight
    model.get_model().build_vision(model.config)
    projector_dtype = projector_dtype or like.dtype
    model.get_vision_tower().to(device=like.device, dtype=like.dtype)
    model.get_projector().to(device=like.device, dtype=projector_dtype)
    model.get_projector().scale_to(like)
    if hasattr(model.get_model(), NEWLINE):
        newline = model.get_model().image_newline
        newline.data = newline.to(device=like.device, dtype=projector_dtype)
    load_vision_weights(model.get_vision_tower(), model.config.mm_vision_tower)
    model.get_vision_tower().requires_grad_(False)


def load_pretrained_model(
    model_path: str | CheckpointPlan,
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
        model_path: a folder, a hub name or its plan. The folder holds a whole model, or stage 1's
            mm_projector.bin and config.json, or LoRA's adapter_config.json, adapters and
            non_lora_trainables.bin.
        model_base: the model that a projector or adapters were trained on; by default the one that the
            adapters name.
        model_name: accepted for compatibility; it decides nothing.
        load_8bit, load_4bit: quantise the language model with bitsandbytes. Adapters then stay separate;
            otherwise they are merged into the weights.
        device_map: as in transformers; by default everything on `device`.
        device: "cuda", "mps" or "cpu"; by default the first of these that is available.
        attn_implementation: the language model's attention, as in transformers.
        torch_dtype: the dtype of weights and arithmetic. By default it is float32 on a CPU. On a GPU it is
            config.json's, but bfloat16 in place of float32, and float16 in place of bfloat16 if the GPU lacks
            bfloat16 (llava.loading.default_dtype). "auto" means config.json's dtype on every device.
            Arithmetic with quantised weights is done in this dtype.
        compile_vision: encode images with one compiled graph.
        kwargs: arguments of older callers. use_flash_attn means flash_attention_2; multimodal has no effect.
    Returns:
        (tokenizer, model in eval mode, image_processor or None for a text-only model, context_len in tokens).
    Raises:
        UserError: if files are missing or do not fit one another (the message names each), or if the
            attention implementation cannot be used here.
    """
    unknown = set(kwargs) - {"use_flash_attn", "multimodal"}
    if unknown:
        raise UserError(f"load_pretrained_model has no argument {', '.join(sorted(unknown))}.")
    if kwargs.get("use_flash_attn"):
        attn_implementation = attn_implementation or "flash_attention_2"
    plan = model_path if isinstance(model_path, CheckpointPlan) else plan_checkpoint(model_path)
    device = device or default_device()
    dtype = torch_dtype or plan.dtype(device)
    options = {"dtype": dtype, "attn_implementation": attn_implementation}
    if load_8bit or load_4bit:
        # "auto" names no dtype to compute in
        computed = getattr(torch, dtype, plan.dtype(device)) if isinstance(dtype, str) else dtype
        options |= quantization(4 if load_4bit else 8, computed)
    if device_map is not None and torch.device(device).type != "cpu":
        options["device_map"] = device_map
    tokenizer_source = plan.path
    if plan.kind is Kind.ADAPTERS:
        model, tokenizer_source = load_adapters_over_base(plan, model_base, options)
    elif plan.kind is Kind.MODEL:
        model = load_whole_model(plan, options)
    else:
        model, tokenizer_source = load_projector_over_base(plan, model_base, options)
    if "device_map" not in options and "quantization_config" not in options:
        model.to(device)
    model.eval()
    if compile_vision and model.get_vision_tower() is not None:
        model.compile_vision()
    tokenizer = load_tokenizer(tokenizer_source, padding_side="left")
    if model.config.slice_separator_ids is None:
        model.config.slice_separator_ids = separator_ids(tokenizer)
    context_length = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT_LENGTH
    return tokenizer, model, image_processor_of(model, plan), context_length


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def quantization(bits: int, dtype: torch.dtype, double_quant: bool = True, quant_type: str = "nf4") -> dict:
    """transformers' options for bitsandbytes weights; vision parts and head are not quantised.

    Args:
        bits: 4 or 8.
        dtype: the dtype to compute in.
    """
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            # patterns, matched from the start of a module's name: they cover the linear maps in these parts
            llm_int8_skip_modules=[r"[^.]+\.vision_tower", r"[^.]+\.mm_projector", "lm_head"],
        )
    }


def load_whole_model(
    plan: CheckpointPlan, options: dict, fields: VisionFields | None = None
) -> PreTrainedModel:
    """Load a folder with all weights; the tower's may instead be in config.json's mm_vision_tower.

    Args:
        fields: multimodal keys that replace config.json's.
    """
    check_model(plan.path)
    config = copy.deepcopy(plan.config)
    if fields is not None:
        copy_fields(config, fields)
    model, info = plan.model_class.from_pretrained(
        plan.path,
        config=config,
        output_loading_info=True,
        use_safetensors=None,
        ignore_mismatched_sizes=True,  # mismatched weights are reported below
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
        raise UserError(f"{plan.path} does not fit its config.json: {'; '.join(problems[:20])}.")
    return model


def load_with_vision(
    plan: CheckpointPlan, fields: VisionFields, options: dict, projector_dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Load a multimodal checkpoint with its own tower and projector, or a language model with new ones.

    Args:
        fields: the vision settings; in a multimodal checkpoint they can change only what needs no other
            weights.
        projector_dtype: by default the language model's.
    Raises:
        UserError: if the folder holds no whole model, or its weights do not fit.
    """
    if not plan.weights:
        raise UserError(
            f"{plan.path} contains no language model; give the one that its weights were trained on, "
            "or first merge the adapters with scripts/merge_lora_weights.py."
        )
    if plan.sees:
        model = load_whole_model(plan, options, fields)
        if projector_dtype is not None and next(model.get_projector().parameters(), None) is not None:
            model.get_projector().to(projector_dtype)
            newline = getattr(model.get_model(), NEWLINE, None)
            if newline is not None:
                newline.data = newline.to(projector_dtype)
            # Read the projector again: loading rounded its trained weights to the language model's type
            load_projector(model, plan.read_projector(), str(plan.path))
        return model
    model = load_whole_model(plan, options)
    attach_vision(model, fields, projector_dtype)
    return model


def load_projector_over_base(
    plan: CheckpointPlan, model_base: str | None, options: dict
) -> tuple[PreTrainedModel, Path]:
    """Load stage 1's folder: its projector and multimodal keys, over the model it was trained on.

    Returns:
        the model, and the folder of its tokenizer.
    """
    if model_base is None:
        raise UserError(
            f"{plan.path} contains only {PROJECTOR_FILE}; "
            "give the language model that it was trained on with --model-base."
        )
    base = plan_checkpoint(model_base, "--model-base")
    check_base(plan.config, base.config, str(plan.path), f"--model-base {model_base}")
    model = load_with_vision(base, plan.config, options)
    load_projector(model, plan.learned, str(plan.path))
    return model, base.path


def load_adapters_over_base(
    plan: CheckpointPlan, model_base: str | None, options: dict
) -> tuple[PreTrainedModel, Path]:
    """Load LoRA's folder: adapters and the weights trained beside them, over the model they were trained on.

    Returns:
        the model, and the folder of its tokenizer.
    """
    named = plan.adapters.base_model_name_or_path
    if not (model_base or named):
        raise UserError(
            f"{plan.path} contains adapters, but does not name the model that they were trained on; "
            "give it with --model-base."
        )
    flag = "--model-base" if model_base else f"--model-base is missing, and {plan.path} names"
    base = plan_checkpoint(model_base or named, flag)
    adapter_file(plan.path)  # a check; the file is read only after the base, which may take minutes
    check_base(plan.config, base.config, str(plan.path), f"{flag} {base.path}", has_words(plan.learned))
    if model_base:
        note_other_name(named, model_base, str(plan.path), flag)
    model = load_with_vision(base, plan.config, options)
    load_trainables(model, plan.learned, str(plan.path / TRAINABLES_FILE), complete=not base.sees)
    return merge_adapters(model, plan.path), plan.path if plan.has_tokenizer else base.path


def check_start(plan: CheckpointPlan, config: PretrainedConfig, name_or_path: str) -> None:
    """Refuse a training run that starts from adapters of another model than its own.

    Without a config.json beside the adapters, only the shapes of the weights are compared.

    Args:
        plan: the plan of the adapters' folder.
        config: the configuration of the run's model, whose tower is built.
        name_or_path: the run's --model_name_or_path.
    Raises:
        UserError: if settings differ; the message has each key and both values.
    """
    if not plan.saved:
        return
    given, source = f"--model_name_or_path {name_or_path}", f"--lora_weight_path {plan.path}"
    learned_vision = bool(plan.projector_weights)
    check_base(plan.config, config, source, given, has_words(plan.learned), learned_vision)
    note_other_name(
        plan.adapters.base_model_name_or_path, name_or_path, str(plan.path), "--model_name_or_path"
    )


def image_processor_of(model: PreTrainedModel, plan: CheckpointPlan | None = None):
    """The folder's own image processor if it has one, else the tower's; None for a text-only model."""
    tower = model.get_vision_tower()
    if tower is None:
        return None
    own = plan.path if plan is not None and plan.has_image_processor else None
    return load_image_processor(str(own or model.config.mm_vision_tower), tower.image_size)
