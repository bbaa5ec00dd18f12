"""Checks from their config.json files whether parts that were saved separately belong together.

The weights of many models have equal shapes and different meanings. With adapters, a projector or a tower of
another model no other check would fail, and every answer would be wrong.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from transformers import PretrainedConfig

from llava.errors import UserError
from llava.model.files import read_json
from llava.model.multimodal_projector.base import FixedScaleCompressor
from llava.model.multimodal_projector.builder import VisionFields, projector_class, projector_type_of
from llava.model.vision_config import plain_type, resolve_levels, resolve_select_layer

logger = logging.getLogger(__name__)

# The settings of how a language model computes with its weights, by the key names of all families
LANGUAGE_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "sliding_window"),
    *("attention_bias", "mlp_bias"),
    *("expansion_ratio", "layer_norm_epsilon", "logit_scale", "no_bias"),
)
ATTENTION_KEYS = ("alibi", "alibi_bias_max", "clip_qkv", "prefix_lm", "qk_ln", "softmax_scale")  # MPT's
ADDED_WORDS = 4  # <im_patch>, <im_start>, <im_end>, [PAD]: rows that a vocabulary may have gained
TOWER_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("patch_size", "image_size", "hidden_act", "layer_norm_eps"),
)


def language_settings(config: PretrainedConfig) -> dict:
    """The settings that a language model's weights were trained with, in a form that can be compared."""
    settings: dict = {"model_type": plain_type(type(config))}
    settings |= {key: getattr(config, key) for key in LANGUAGE_KEYS if hasattr(config, key)}
    if settings.get("rope_parameters"):
        rope = {key: value for key, value in settings["rope_parameters"].items() if key != "type"}
        settings["rope_parameters"] = rope  # `type` is an older name of rope_type, which is there too
    attention = getattr(config, "attn_config", None)
    return settings | {f"attn_config.{key}": getattr(attention, key) for key in ATTENTION_KEYS if attention}


def fixed_by_weights(fields: VisionFields, depth: int) -> dict:
    """The settings that a projector's weights were made or trained for, in a form that can be compared.

    Args:
        depth: the number of the tower's layers.
    """
    layer = fields.mm_vision_select_layer
    fixed: dict = {
        "mm_projector_type": fields.mm_projector_type,
        "mm_vision_select_layer": resolve_select_layer(layer, depth),
        "mm_vision_select_feature": fields.mm_vision_select_feature,
        "mm_patch_merge_type": fields.mm_patch_merge_type == "spatial_unpad",  # whether it has the newline
    }
    kind = projector_class(fields.mm_projector_type)
    if kind.needs_levels:
        fixed["mm_vision_levels"] = resolve_levels(fields.mm_vision_levels, depth, layer)
    if issubclass(kind, FixedScaleCompressor):
        fixed["scale_factor"] = fields.scale_factor
    return fixed | kind.options(fields).fixed_by_weights()


def tower_settings(vision_config: dict | None) -> dict:
    """The settings that a tower's weights were trained with; empty if its configuration is not known."""
    return {key: vision_config[key] for key in TOWER_KEYS if vision_config and key in vision_config}


def vision_settings(config: dict, depth: int) -> dict:
    """A config.json's settings of tower and projector, in a form that can be compared.

    Args:
        config: of a multimodal model, with the projector type that its weights have. Keys that it lacks are
            left out.
        depth: the number of the tower's layers.
    """
    known = VisionFields.__dataclass_fields__.keys() & config.keys()
    fields = VisionFields(**{key: config[key] for key in known})
    fixed = {key: value for key, value in fixed_by_weights(fields, depth).items() if key in known}
    tower = {f"mm_vision_config.{key}": v for key, v in tower_settings(fields.mm_vision_config).items()}
    return fixed | tower


def stage_1_settings(config: dict, depth: int) -> dict:
    """The settings that stage 1's projector was trained with and stage 2 must keep, as in vision_settings.

    The language model may be another of the same width, and stage 2 may add a learnt newline. scale_factor is
    not compared if either side has elastic_scale_factors, for a projector that serves several budgets.
    """
    settings = vision_settings(config, depth)
    settings.pop("mm_patch_merge_type", None)
    tower = config.get("mm_vision_config") or {}
    found = {
        "hidden_size": config.get("hidden_size"),
        "mm_vision_image_size": config.get("mm_vision_image_size") or tower.get("image_size"),
    }
    if projector_class(config["mm_projector_type"]).compresses and not config.get("elastic_scale_factors"):
        found["scale_factor"] = config.get("scale_factor")
    return settings | {key: value for key, value in found.items() if value is not None}


def differences(own: dict, other: dict, written: dict | None = None, others: dict | None = None) -> list[str]:
    """Describe each key whose values differ: the value in `own` as "its", that in `other` as "the model's".

    Args:
        written, others: the two as a user wrote them (-2 for the 23rd of 24 layers), for the description.
    """
    keys = [key for key in own if key in other and own[key] != other[key]]
    if "model_type" in keys:  # the other keys then mean different things
        keys = ["model_type"]

    def said(settings: dict, words: dict | None, key: str):
        value = (words or {}).get(key)
        return settings[key] if value is None else value

    return [
        f"its {key} is {said(own, written, key)!r}, but the model's is {said(other, others, key)!r}"
        for key in keys
    ]


def check_base(
    own: PretrainedConfig,
    model: PretrainedConfig,
    source: str,
    given: str,
    brings_words: bool = False,
    compares_vision: bool = True,
) -> None:
    """Refuse a model that adapters or a projector were not trained on.

    Args:
        own: the configuration saved with them, with the projector type that their weights have.
        model: the configuration of the model that is to receive them. It may be text-only, and then gets
            vision parts as in `own`.
        source, given: names of the two for the message, the model's with its flag.
        brings_words: whether embeddings of the whole vocabulary are loaded with them.
        compares_vision: False if no weights are loaded that were trained with tower and projector.
    Raises:
        UserError: if settings differ; the message has each key and both values.
    """
    problems = differences(language_settings(own), language_settings(model))
    if not brings_words and abs(own.vocab_size - model.vocab_size) > ADDED_WORDS:
        problems.append(f"its vocab_size is {own.vocab_size}, but the model's is {model.vocab_size}")
    if compares_vision and own.mm_vision_tower is not None and model.mm_vision_tower is not None:
        tower = model.mm_vision_config or own.mm_vision_config
        if tower is not None:  # else only the folder that both name has the tower's settings
            written = own.to_dict(), model.to_dict()
            settings = (vision_settings(config, tower["num_hidden_layers"]) for config in written)
            problems += differences(*settings, *written)  # type: ignore[call-arg]
    if problems:
        raise UserError(
            f"{source} was not trained on {given}: {'; '.join(problems)}. "
            "Give the model that it was trained on."
        )


def check_stage_1(file: str | Path, weights: Iterable[str], model_config: PretrainedConfig) -> None:
    """Refuse a --pretrain_mm_mlp_adapter whose config.json has another tower or other settings.

    If no config.json is beside it, as beside published projectors, only the shapes of the weights decide.

    Args:
        file: mm_projector.bin.
        weights: the names of its weights, as the projector itself names them.
        model_config: the configuration of the model that is to receive it; its tower is built.
    Raises:
        UserError: if settings differ; the message has each key and both values.
    """
    beside = Path(file).with_name("config.json")
    own = read_json(beside) if beside.is_file() else {}
    if own.get("mm_vision_tower") is None:
        return
    own["mm_projector_type"] = projector_type_of(list(weights), own.get("mm_projector_type"), str(beside))
    depth = model_config.mm_vision_config["num_hidden_layers"]
    written = own, model_config.to_dict()
    if problems := differences(*(stage_1_settings(config, depth) for config in written), *written):  # type: ignore[call-arg]
        raise UserError(
            f"--pretrain_mm_mlp_adapter {file} was trained with other settings, as its config.json shows: "
            f"{'; '.join(problems)}. Pass the flags that it was trained with, or run stage 1 with the "
            "present ones. (Without that config.json, only shapes are compared.)"
        )


def note_other_name(named: str | None, given: str, source: str, flag: str) -> None:
    """Warn if adapters name another base model than they get; here the configurations show no difference.

    A model can have several names. Two of them, paths or hub names, agree if the last part of one is a part
    of the other.
    """
    if not named:
        return
    ours, theirs = (re.split(r"[/\\]|--", name.strip("/").lower()) for name in (named, given))
    if ours[-1] not in theirs and theirs[-1] not in ours:
        logger.warning(
            "%s names %s as the model that it was trained on, but %s is %s. Their configurations agree, but "
            "their weights may differ; if they do, answers will be wrong.",
            *(source, named, flag, given),
        )
