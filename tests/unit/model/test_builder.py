"""Folders are loaded by their contents, and errors say clearly what is wrong with them."""

import json
import shutil
from itertools import cycle, product

import pytest
import tiny
import torch
from messages import assert_names
from safetensors.torch import load_file, save_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import PROJECTOR_FILE, load_exactly, read_projector
from llava.model.language_model.builder import read_config, type_of
from llava.model.multimodal_projector.builder import PROJECTORS, SIGNATURES, projector_type_of
from llava.model.multimodal_projector.mlp import IdentityProjector
from llava.train.saving import save_projector

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8]])
IMAGES = torch.randn(1, 3, 56, 56)


def save_whole(model, folder, tokenizer):
    """Writes the result of stage 2: model, tokenizer, image processor."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(f"{model.config.mm_vision_tower}/preprocessor_config.json", folder)
    return str(folder)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, images=IMAGES).logits


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.parametrize(
    ("family", "tower"),
    [
        *((family, "clip") for family in tiny.LANGUAGE_MODELS),
        *(("llama", tower) for tower in tiny.TOWERS if tower != "clip"),
    ],
)
def test_a_whole_model_comes_back_with_the_same_logits_without_its_sources(
    tmp_path, bpe_tokenizer, family, tower
):
    model = tiny.build(tmp_path, family, tower)
    folder = save_whole(model, tmp_path / "a-name-that-says-nothing", bpe_tokenizer)
    shutil.rmtree(tmp_path / "tower")
    _, loaded, processor, context_length = load_pretrained_model(folder)
    assert not loaded.training
    assert type(loaded) is type(model)
    tiny.assert_same(loaded, model, logits)
    assert processor.crop_size["height"] == 56
    assert context_length == model.config.max_position_embeddings


@pytest.mark.parametrize("projector_type", ["linear", "mlp2x_gelu", "mlp3x_gelu", "visualprism"])
def test_a_projector_alone_loads_over_its_language_model(tmp_path, bpe_tokenizer, projector_type):
    model = tiny.build(tmp_path, mm_projector_type=projector_type)
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    save_projector(model, tmp_path / "stage1")
    _, loaded, _, _ = load_pretrained_model(str(tmp_path / "stage1"), str(tmp_path / "language_model"))
    tiny.assert_same(loaded, model, logits)


def test_published_key_names_with_the_inner_vision_model_load(tmp_path, bpe_tokenizer):
    model = tiny.build(tmp_path)
    folder = save_whole(model, tmp_path / "published", bpe_tokenizer)
    weights = load_file(f"{folder}/model.safetensors")
    old = "model.vision_tower.vision_tower."
    renamed = {
        k.replace(old, f"{old}vision_model.") if k.startswith(old) else k: v for k, v in weights.items()
    }
    save_file(renamed, f"{folder}/model.safetensors", metadata={"format": "pt"})
    tiny.assert_same(load_pretrained_model(folder)[1], model, logits)


def test_a_tower_named_but_not_contained_is_fetched_by_its_name(tmp_path, bpe_tokenizer):
    model = tiny.build(tmp_path)
    folder = save_whole(model, tmp_path / "without-tower", bpe_tokenizer)
    weights = load_file(f"{folder}/model.safetensors")
    kept = {k: v for k, v in weights.items() if "vision_tower" not in k}
    save_file(kept, f"{folder}/model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "without-tower" / "config.json").read_text())
    del config["mm_vision_config"]
    (tmp_path / "without-tower" / "config.json").write_text(json.dumps(config))
    tiny.assert_same(load_pretrained_model(folder)[1], model, logits)


def test_a_plain_language_model_gets_a_freshly_initialised_projector(tmp_path):
    config = tiny.build(tmp_path, mm_hidden_size=32).config
    model = type_of(config).from_pretrained(tmp_path / "language_model", config=config)
    projector = model.get_projector()
    wavelet = projector.q_freq[0].wavelet
    assert wavelet.dec_filter.abs().eq(0.5).all()
    assert wavelet.rec_filter.abs().eq(0.25).all()
    assert projector.q_freq[0].subband_scale.tolist() == pytest.approx([1.0, 1.2, 1.2, 1.5])
    assert projector.q_fusion_weights.tolist() == pytest.approx([1 / 3] * 3)
    assert abs(projector.kv_down_proj.weight.std() - 0.02) < 2e-3
    assert projector.clip_attn.in_proj_weight.abs().max() <= (6 / (32 + 96)) ** 0.5
    norm = projector.k_local.fusion[1]
    assert norm.running_var.eq(1).all()
    assert norm.running_mean.eq(0).all()


def test_a_missing_projector_weight_is_named(tmp_path, bpe_tokenizer):
    folder = save_whole(tiny.build(tmp_path), tmp_path / "broken", bpe_tokenizer)
    weights = load_file(f"{folder}/model.safetensors")
    del weights["model.mm_projector.kv_down_proj.weight"]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing model\.mm_projector\.kv_down_proj\.weight"):
        load_pretrained_model(folder)


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_a_missing_weight_of_the_language_model_below_a_projector_is_named(tmp_path, bpe_tokenizer, family):
    model = tiny.build(tmp_path, family)
    save_projector(model, tmp_path / "stage1")
    file = tmp_path / "language_model" / "model.safetensors"
    weights = load_file(file)
    gone = next(
        name for name in weights if name.endswith("norm_1.weight") or name.endswith("input_layernorm.weight")
    )
    save_file({k: v for k, v in weights.items() if k != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"language_model.*config.json.*missing {gone}"):
        load_pretrained_model(str(tmp_path / "stage1"), str(tmp_path / "language_model"))


def test_a_projector_of_another_width_is_refused_key_by_key(tmp_path):
    model = tiny.build(tmp_path)
    other = tiny.build(tmp_path, "qwen2", mm_projector_type="mlp2x_gelu")
    save_projector(other, tmp_path / "stage1")
    state = read_projector(tmp_path / "stage1" / PROJECTOR_FILE)
    with pytest.raises(ValueError, match=r"missing q_fusion_weights.*--mm_projector_type"):
        load_exactly(model.get_projector(), state, "stage1")
    before = other.get_projector()[0].weight.clone()
    state["0.weight"] = state["0.weight"][:, :-1]
    with pytest.raises(ValueError, match=r"0\.weight.*\[32, 31\].*\[32, 32\]"):
        load_exactly(other.get_projector(), state, "stage1")
    assert torch.equal(other.get_projector()[0].weight, before)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        load_pretrained_model(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_pretrained_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"')
    with pytest.raises(ValueError, match="not JSON"):
        load_pretrained_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    with pytest.raises(ValueError, match=r"neither model\.safetensors .* nor mm_projector\.bin"):
        load_pretrained_model(str(tmp_path))
    (tmp_path / PROJECTOR_FILE).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="--model-base"):
        load_pretrained_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"mm_projector\.bin.*damaged"):
        read_projector(tmp_path / PROJECTOR_FILE)
    with pytest.raises(ValueError, match=r"scripts/v1_5/pretrain\.sh"):
        read_projector(tmp_path / "absent.bin")


def test_unknown_language_models_and_projectors_are_refused_with_the_choices(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="'mamba'.*llama"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="'visualprysm'.*linear, identity, visualprism"):
        tiny.build(tmp_path, mm_projector_type="visualprysm")
    with pytest.raises(ValueError, match="identity.*32.*64"):
        IdentityProjector(32, 64)


def as_published(model, folder, tokenizer, config_changes, dropped=(), as_bin=False, with_tower=True):
    """A folder in the layout of LLaVA's, TokenPacker's and VisualPrism's releases."""
    save_whole(model, folder, tokenizer)
    weights = load_file(folder / "model.safetensors")
    old = "model.vision_tower.vision_tower."
    published = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    for key, value in weights.items():
        if not key.startswith(old):
            published[key] = value
        elif with_tower:
            published[key.replace(old, f"{old}vision_model.")] = value
    if with_tower:
        published[f"{old}vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    if as_bin:
        (folder / "model.safetensors").unlink()
        torch.save(published, folder / "pytorch_model.bin")
    else:
        save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | config_changes
    for key in (
        *dropped,
        "mm_vision_config",
        "mm_vision_levels",
        *(k for k in config if k[:12] == "visualprism_"),
    ):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


PUBLISHED = {
    "LLaVA 1.5": ("mlp2x_gelu", {"model_type": "llava_llama"}, ()),
    "LLaVA 1.0": ("linear", {"model_type": "llava"}, ()),
    "TokenPacker, no type": (
        "tokenpacker",
        {"model_type": "llava", "mm_hidden_size": 4096},
        ["mm_projector_type"],
    ),
    "TokenPacker, wrong type": ("tokenpacker", {"model_type": "llava", "mm_projector_type": "linear"}, ()),
    "VisualPrism": ("visualprism", {"model_type": "llava"}, ()),
    "MLP, no type": ("mlp2x_gelu", {"model_type": "llava"}, ["mm_projector_type"]),
}


FORMS = {
    "bin, tower inside": {"as_bin": True, "with_tower": True},
    "bin, tower by name": {"as_bin": True, "with_tower": False},
    "safetensors, tower inside": {"as_bin": False, "with_tower": True},
    "safetensors, tower by name": {"as_bin": False, "with_tower": False},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "form"),
    # The first in every form, each of the others in one
    [*product(list(PUBLISHED)[:1], FORMS), *zip(list(PUBLISHED)[1:], cycle(FORMS), strict=False)],
)
def test_folders_of_others_load_and_give_the_logits_of_their_parts(
    tmp_path, bpe_tokenizer, caplog, release, form
):
    projector_type, changes, dropped = PUBLISHED[release]
    model = tiny.build(tmp_path, mm_projector_type=projector_type)
    folder = as_published(model, tmp_path / "release", bpe_tokenizer, changes, dropped, **FORMS[form])
    loaded = load_pretrained_model(folder)[1]
    tiny.assert_same(loaded, model, logits)
    assert loaded.config.mm_projector_type == projector_type
    wrong = "mm_projector_type" in (*changes, *dropped)
    assert ("mm_projector_type" in caplog.text) == wrong


def test_a_projector_file_of_another_type_than_its_config_says_loads_over_its_base(
    tmp_path, bpe_tokenizer, caplog
):
    model = tiny.build(tmp_path, mm_projector_type="tokenpacker")
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    model.config.mm_projector_type = "linear"
    save_projector(model, tmp_path / "stage1")
    loaded = load_pretrained_model(str(tmp_path / "stage1"), str(tmp_path / "language_model"))[1]
    tiny.assert_same(loaded, model, logits)
    assert_names(caplog.text, "mm_projector_type 'linear'", "tokenpacker")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenpacker", "visualprism", "visualprism_v2"])
@pytest.mark.parametrize("layout", ["whole", "stage 1"])
def test_a_declared_subclass_loads_as_itself_though_it_has_the_weights_of_its_parent(
    tmp_path, bpe_tokenizer, monkeypatch, layout, kind
):
    subclass = type("Mine", (PROJECTORS[kind],), {})
    monkeypatch.setitem(PROJECTORS, "mine", subclass)
    model = tiny.build(tmp_path, mm_projector_type="mine")
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    if layout == "whole":
        loaded = load_pretrained_model(save_whole(model, tmp_path / "whole", bpe_tokenizer))[1]
    else:
        save_projector(model, tmp_path / "stage1")
        loaded = load_pretrained_model(str(tmp_path / "stage1"), str(tmp_path / "language_model"))[1]
    assert type(loaded.get_projector()) is subclass
    tiny.assert_same(loaded, model, logits)


@pytest.mark.parametrize("declared", [None, "linear", "of_another_package"])
@pytest.mark.parametrize(("weight", "kind"), SIGNATURES.items())
def test_weights_name_the_projector_where_the_declared_type_cannot_be_meant(declared, weight, kind):
    assert projector_type_of(["mlp.0.weight", weight], declared, "folder") == kind
    for known in (*PROJECTORS, "mlp2x_gelu"):
        if known != "linear":
            assert projector_type_of([weight], known, "folder") == known


def test_calls_of_older_programs_are_taken_and_misspelt_options_refused(tmp_path, bpe_tokenizer):
    folder = save_whole(tiny.build(tmp_path), tmp_path / "whole", bpe_tokenizer)
    load_pretrained_model(folder, None, "llava-v1.5-7b", device_map="auto", multimodal=True, device="cpu")
    with pytest.raises(ValueError, match="atn_implementation"):
        load_pretrained_model(folder, atn_implementation="sdpa")
