"""Low-rank adapters of the language model (Hu et al. 2021, "LoRA"), in the files of peft and LLaVA."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava.errors import UserError
from llava.model.checkpoint import ADAPTER_CONFIG, TRAINABLES_FILE, check_fit, is_of_projector
from llava.model.files import check_weights, read_bin, read_json
from llava.model.zero3 import gathered

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PUBLISHED_PREFIX = "base_model.model."  # peft's wrappers put it before every published key
ADAPTER_NAME = "default"  # peft's name for the only adapter; its files leave it out
VISION_MODULES = r"(.*\.)?(vision_tower|mm_projector)(\..*)?"
VISION_TOWER = "vision_tower."


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model, "is_quantized", False)  # transformers sets it on quantised models


def is_adapter(parameter_name: str) -> bool:
    return ".lora_" in parameter_name


def published_key(parameter_name: str) -> str:
    """model.layers.0.self_attn.q_proj.lora_A.default.weight -> base_model.model.model. ... .lora_A.weight."""
    return PUBLISHED_PREFIX + parameter_name.replace(f".{ADAPTER_NAME}.", ".")


def plain_key(key: str) -> str:
    """Turn a parameter's name or a published key into its name in the model without adapters."""
    return (
        key.removeprefix(PUBLISHED_PREFIX)
        .replace(f".{ADAPTER_NAME}.", ".")
        .replace(".base_layer.", ".")
        .replace(f"{VISION_TOWER}vision_model.", VISION_TOWER)  # as transformers before 5 named it
    )


def linear_maps(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the language model's linear maps, without the head: q_proj, up_proj, ..."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head and not re.fullmatch(VISION_MODULES, name)
        }
    )


def read_adapter_config(folder: Path):
    """Read adapter_config.json as peft's LoraConfig, limited to the language model.

    Published configurations name modules such as q_proj, which a vision tower has too.

    Raises UserError if the file is damaged or describes another kind of adapter.
    """
    from peft import LoraConfig

    kind = read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder / ADAPTER_CONFIG} has peft_type {kind!r}; only LORA is supported.")
    config = LoraConfig.from_pretrained(str(folder))
    config.exclude_modules = config.exclude_modules or VISION_MODULES
    return config


def adapter_file(folder: Path) -> Path:
    """The file with a folder's adapters. Raises UserError if it is missing or incomplete."""
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} contains no adapters ({' or '.join(ADAPTER_WEIGHTS)}).")
    check_weights(file)
    return file


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Load a folder's adapters, and the biases trained with them, into a model that has adapters.

    Raises UserError if the file is missing or damaged, if a weight is missing, unexpected or of another
    shape, or if the adapters were trained at another scale than the model's adapters have.
    """
    _check_scale(model, folder)
    file = adapter_file(folder)
    state = load_file(file) if file.suffix == ".safetensors" else read_bin(file)
    own = {plain_key(name): parameter for name, parameter in model.named_parameters()}
    adapters = [plain_key(name) for name, _ in model.named_parameters() if is_adapter(name)]
    advice = "Give the same --lora_r and language model as in their training."
    _fill(own, {plain_key(key): value for key, value in state.items()}, adapters, str(file), advice)


def _check_scale(model: PreTrainedModel, folder: Path) -> None:
    """Refuse adapters that were trained at another scale, which their shapes do not show.

    The scale is lora_alpha / lora_r, or lora_alpha / sqrt(lora_r) with use_rslora.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    trained, own = read_json(folder / ADAPTER_CONFIG), model.peft_config[ADAPTER_NAME]
    for key, default in (("lora_alpha", 8), ("use_rslora", False)):
        if trained.get(key, default) != getattr(own, key):
            raise UserError(
                f"the adapters of {folder} were trained with {key} {trained.get(key, default)}, but this run "
                f"has {getattr(own, key)}; pass --{key} {trained.get(key, default)}."
            )


def merge_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge a folder's adapters into the model's weights; in a quantised model they stay separate.

    Merging rounds to the weights' own type, and in 4 or 8 bits little of the adapters would be left.
    """
    from peft import LoraModel

    tuner = LoraModel(model, read_adapter_config(folder), ADAPTER_NAME)
    load_adapters(model, folder)
    return model if is_quantized(model) else tuner.merge_and_unload()


def read_trainables(folder: Path) -> dict[str, Tensor]:
    """Read non_lora_trainables.bin, keyed by the plain model's names: model.mm_projector.0.weight."""
    state = read_bin(folder / TRAINABLES_FILE, "copy it from the source of the adapters.")
    return {plain_key(key): value for key, value in state.items()}


def has_words(state: dict[str, Tensor]) -> bool:
    """Whether the trained weights include a vocabulary's embeddings, perhaps with added tokens."""
    return any(key.endswith((".embed_tokens.weight", ".wte.weight")) for key in state)


def load_trainables(model: PreTrainedModel, state: dict[str, Tensor], source: str, complete: bool) -> None:
    """Load the weights trained beside the adapters: the projector, perhaps the tower, perhaps added tokens.

    Args:
        complete: whether all of the projector must be in `state`, buffers included.
    Raises:
        UserError: if a weight is missing, unexpected or of another shape.
    """
    words = {plain_key(n): p for n, p in model.named_parameters() if p is model.get_input_embeddings().weight}
    for key, weight in words.items():
        if key in state and len(state[key]) != weight.shape[0]:
            model.resize_token_embeddings(len(state[key]))
    own = {plain_key(name): value for name, value in model.state_dict(keep_vars=True).items()}
    needed = [name for name in own if complete and is_of_projector(name)]
    advice = "Check that language model and tower are the ones that it was trained with."
    _fill(own, state, needed, source, advice)


def _fill(
    own: dict[str, Tensor], state: dict[str, Tensor], needed: list[str], source: str, advice: str
) -> None:
    """Copy `state` into the tensors `own` by key; if one does not fit, copy none."""
    with torch.no_grad(), gathered([own[key] for key in state if key in own], write=True):
        problems = check_fit({k: v for k, v in own.items() if k in state}, state, needed)
        if problems:
            raise UserError(f"{source} does not fit the model: {problems}. {advice}")
        for key, value in state.items():
            own[key].copy_(value)
