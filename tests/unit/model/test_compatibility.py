"""Adapters and projectors load only into the model that they were trained on, even if shapes are equal."""

import json
import logging
import shutil

import pytest
import tiny
import torch
from peft import LoraConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.adapters import VISION_MODULES, linear_maps
from llava.model.builder import load_pretrained_model
from llava.model.compatibility import note_other_name
from llava.train.saving import learned_state, save_adapters, save_projector

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8]])
IMAGES = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def build(folder, tokenizer, family, **fields):
    """A language model, the same with a tower ("sees"), and parts trained on them: "stage 1" and "lora"."""
    model = tiny.build(folder, family, **fields)
    for name in ("language_model", "sees"):
        if name == "sees":
            model.save_pretrained(folder / name)
            shutil.copy(folder / "tower" / "preprocessor_config.json", folder / name)
        tokenizer.save_pretrained(folder / name)
    save_projector(model, folder / "stage 1")
    config = LoraConfig(r=2, target_modules=linear_maps(model), exclude_modules=VISION_MODULES)
    config.init_lora_weights = False
    model.add_adapter(config)
    save_adapters(model, folder / "lora", learned_state(model))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bpe_tokenizer):
    """The folders of each family."""
    return {
        family: build(tmp_path_factory.mktemp(family), bpe_tokenizer, family)
        for family in tiny.LANGUAGE_MODELS
    }


def edited(source, target, changes: dict, dropped=()):
    """A copy of a model's folder with a changed config.json; a dotted key belongs to a part."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    for key, value in changes.items():
        *parents, name = key.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        part[name] = value
    for key in dropped:
        config.pop(key, None)
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


# Changes of config.json that do not change any shape: (family, changes of the base, key in the message)
ROPE = {"rope_theta": 500000.0, "rope_type": "default"}
OTHER_MODELS = {
    "norm epsilon": ("llama", {"rms_norm_eps": 1e-5}, "rms_norm_eps.*1e-06.*1e-05"),
    "rotary base": ("llama", {"rope_parameters": ROPE}, "rope_parameters.*10000.*500000"),
    "rotary base, older key": ("qwen2", {"rope_parameters": None, "rope_theta": 5e5}, "rope_parameters"),
    "rotary scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        "rope_parameters.*default.*linear",
    ),
    "heads": (
        "llama",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        "num_attention_heads.*2.*4",
    ),
    "activation": ("mistral", {"hidden_act": "gelu"}, "hidden_act.*'silu'.*'gelu'"),
    "window": ("mistral", {"sliding_window": 8}, "sliding_window.*4096.*8"),
    "layers": ("qwen3", {"num_hidden_layers": 1}, "num_hidden_layers.*2.*1"),
    "width": ("qwen2", {"intermediate_size": 128}, "intermediate_size.*64.*128"),
    "vocabulary": ("llama", {"vocab_size": 640}, "vocab_size.*600.*640"),
    "alibi": (
        "mpt",
        {"attn_config.alibi_bias_max": 16},
        r"attn_config\.alibi_bias_max.*8.*16",
    ),
    "MPT's epsilon": ("mpt", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon.*1e-05"),
}


@pytest.mark.parametrize("kind", ["lora", "stage 1"])
@pytest.mark.parametrize("other", OTHER_MODELS)
def test_another_language_model_is_refused_by_key_and_both_values(folders, tmp_path, kind, other):
    family, changes, says = OTHER_MODELS[other]
    base = edited(folders[family] / "language_model", tmp_path / "base", changes)
    with pytest.raises(UserError, match=says) as caught:
        load_pretrained_model(str(folders[family] / kind), base)
    assert str(folders[family] / kind) in str(caught.value)
    assert f"--model-base {base}" in str(caught.value)


@pytest.mark.parametrize("kind", ["lora", "stage 1"])
@pytest.mark.parametrize(
    ("family", "other"),
    [("llama", "mistral"), ("mistral", "llama"), ("llama", "qwen2"), ("qwen2", "qwen3"), ("llama", "mpt")],
)
def test_another_family_is_refused(folders, kind, family, other):
    with pytest.raises(UserError, match=f"model_type.*'{family}'.*'{other}'"):
        load_pretrained_model(str(folders[family] / kind), str(folders[other] / "language_model"))


def test_a_base_that_adapters_name_themselves_is_compared_too(folders, tmp_path):
    base = edited(folders["llama"] / "language_model", tmp_path / "base", {"rms_norm_eps": 1e-5})
    shutil.copytree(folders["llama"] / "lora", tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))
    with pytest.raises(UserError, match=r"--model-base is missing.*rms_norm_eps"):
        load_pretrained_model(str(tmp_path / "lora"))


# Changes of a base with a tower: settings with which adapters and projector were not trained
OTHER_EYES = {
    "mm_vision_select_layer": (-3, "mm_vision_select_layer.*-2.*-3"),
    "mm_vision_select_feature": ("cls_patch", "mm_vision_select_feature.*'patch'"),
    "mm_vision_levels": ([1, 2, 3, 5], "mm_vision_levels"),
    "visualprism_wavelet": ("db2", "visualprism_wavelet.*'haar'"),
    "mm_vision_config.model_type": (
        "siglip_vision_model",
        "mm_vision_config.model_type.*'clip_vision_model'",
    ),
    "mm_vision_config.hidden_act": (
        "gelu",
        "mm_vision_config.hidden_act.*'quick_gelu'.*'gelu'",
    ),
    "mm_vision_config.layer_norm_eps": (1e-6, "mm_vision_config.layer_norm_eps.*1e-05"),
}


@pytest.mark.parametrize("kind", ["lora", "stage 1"])
@pytest.mark.parametrize("key", OTHER_EYES)
def test_a_base_with_other_vision_settings_is_refused(folders, tmp_path, kind, key):
    value, says = OTHER_EYES[key]
    base = edited(folders["llama"] / "sees", tmp_path / "base", {key: value})
    with pytest.raises(UserError, match=says):
        load_pretrained_model(str(folders["llama"] / kind), base)


SAME_MODEL = {
    "as it is": ({}, ()),
    "what training sets": ({"use_cache": False, "tokenizer_model_max_length": 77, "conv_version": "v1"}, ()),
    "what saving sets": (
        {"_name_or_path": "x", "transformers_version": "4.31.0", "torch_dtype": "float16"},
        (),
    ),
    "special tokens": ({"bos_token_id": 5, "eos_token_id": [2, 7], "pad_token_id": 0}, ()),
    "what no weight was made for": (
        {"max_position_embeddings": 4096, "attention_dropout": 0.1, "initializer_range": 0.5},
        ("architectures",),
    ),
    "older spelling": ({"rope_theta": 10000, "rope_scaling": None}, ("rope_parameters", "head_dim")),
}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["language_model", "sees"])
@pytest.mark.parametrize("kind", ["lora", "stage 1"])
@pytest.mark.parametrize("same", SAME_MODEL)
def test_what_may_differ_is_not_refused_and_not_warned_of(folders, tmp_path, caplog, kind, same, base):
    changes, dropped = SAME_MODEL[same]
    given = edited(folders["llama"] / base, tmp_path / "language_model", changes, dropped)
    load_pretrained_model(str(folders["llama"] / kind), given)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_settings_that_need_no_other_weights_may_differ_from_a_multimodal_base(folders, tmp_path):
    changes = {"scale_factor": 4, "image_aspect_ratio": "pad", "mm_vision_image_size": 112}
    base = edited(folders["llama"] / "sees", tmp_path / "base", changes)
    model = load_pretrained_model(str(folders["llama"] / "lora"), base)[1]
    assert (model.config.scale_factor, model.config.image_aspect_ratio) == (2, "square")


@pytest.mark.parametrize(("own", "base"), [(603, 600), (604, 600), (600, 603)])
def test_a_vocabulary_may_have_gained_the_words_that_llava_adds(folders, tmp_path, own, base):
    lora = edited(folders["llama"] / "lora", tmp_path / "lora", {"vocab_size": own})
    language_model = tiny.save_language_model(tmp_path / "base", vocab_size=base)
    for file in folders["llama"].joinpath("language_model").glob("token*"):
        shutil.copy(file, language_model)
    load_pretrained_model(lora, language_model)


def test_a_vocabulary_that_comes_with_its_embeddings_may_have_any_size(folders, tmp_path):
    lora = edited(folders["llama"] / "lora", tmp_path / "lora", {"vocab_size": 664})
    file = tmp_path / "lora" / "non_lora_trainables.bin"
    rows = {
        f"base_model.model.{key}": torch.randn(664, 32)
        for key in ("model.embed_tokens.weight", "lm_head.weight")
    }
    torch.save({**torch.load(file, weights_only=True), **rows}, file)
    model = load_pretrained_model(lora, str(folders["llama"] / "language_model"))[1]
    assert torch.equal(
        model.get_input_embeddings().weight, rows["base_model.model.model.embed_tokens.weight"]
    )


def test_a_tower_folder_that_holds_another_tower_now_is_refused(folders, tmp_path):
    tower = edited(folders["llama"] / "tower", tmp_path / "tower", {"hidden_act": "gelu"})
    stage1 = edited(folders["llama"] / "stage 1", tmp_path / "stage 1", {"mm_vision_tower": tower})
    with pytest.raises(UserError, match="--vision_tower .*tower.*hidden_act.*'quick_gelu'.*'gelu'"):
        load_pretrained_model(stage1, str(folders["llama"] / "language_model"))


@pytest.mark.parametrize(
    ("named", "given", "warns"),
    [
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5", False),
        ("lmsys/vicuna-7b-v1.5", "/data/models/Vicuna-7B-v1.5/", False),
        ("lmsys/vicuna-7b-v1.5", "/hub/models--lmsys--vicuna-7b-v1.5/snapshots/0123abc", False),
        ("/hub/models--lmsys--vicuna-7b-v1.5/snapshots/0123abc", "lmsys/vicuna-7b-v1.5", False),
        ("lmsys/vicuna-7b-v1.5", "meta-llama/Llama-2-7b-hf", True),
        (None, "meta-llama/Llama-2-7b-hf", False),
    ],
)
def test_a_model_of_another_name_is_noted(caplog, named, given, warns):
    note_other_name(named, given, "lora", "--model-base")
    assert (f"names {named}" in caplog.text and f"--model-base is {given}" in caplog.text) == warns
    assert bool(caplog.records) == warns
