"""LoRA and QLoRA: their files, loading and merging, and how a run continues from them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from modes import IDS, IMAGES, LORA, load, logits, run, trainer_of
from safetensors.torch import load_file, save_file
from training_parts import flags, losses
from transformers import AutoModelForCausalLM

from llava.conversation import conv_templates, question_prompt
from llava.model.adapters import PUBLISHED_PREFIX, read_trainables
from llava.model.checkpoint import read_projector
from llava.model.tokenizer import load_tokenizer
from llava.train.train import prepare


@pytest.fixture(scope="module")
def adapted(parts, qwen, stage1):
    """(LoRA's folder, its base, the trained model); biases are trained too."""
    folder = stage1.parent / "lora"
    model = run(
        parts,
        folder,
        **LORA,
        model_name_or_path=qwen,
        lora_bias="all",
        pretrain_mm_mlp_adapter=stage1 / "mm_projector.bin",
    )
    return folder, qwen, model


def test_lora_leaves_the_published_files_and_keys(adapted):
    folder, base, _ = adapted
    names = {path.name for path in folder.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "non_lora_trainables.bin",
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
    } <= names
    assert not {"model.safetensors", "mm_projector.bin"} & names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    keys = load_file(folder / "adapter_model.safetensors").keys()
    layer = "base_model.model.model.layers.0"
    assert {f"{layer}.self_attn.q_proj.lora_A.weight", f"{layer}.mlp.down_proj.lora_B.weight"} <= keys
    assert not [key for key in keys if "vision_tower" in key or "mm_projector" in key or "lm_head" in key]
    others = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    assert "base_model.model.model.mm_projector.q_local.fusion.1.running_mean" in others
    assert all(key.startswith("base_model.model.model.mm_projector.") for key in others)


def test_plain_peft_loads_the_adapters_over_the_plain_language_model(adapted):
    from peft import PeftModel

    folder, base, trained = adapted
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    words = torch.tensor([[1, 5, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(plain(words).logits, trained.eval()(input_ids=words).logits, atol=1e-5)


@pytest.mark.parametrize(
    "layout", ["as written", "bin", "keys without peft's prefix", "peft's older keys", "no tokenizer"]
)
def test_adapters_come_back_over_their_base_whatever_the_folder_is_called(adapted, tmp_path, layout):
    folder, base, trained = adapted
    copied = tmp_path / "plain-name"
    shutil.copytree(folder, copied)
    if layout == "bin":
        torch.save(load_file(copied / "adapter_model.safetensors"), copied / "adapter_model.bin")
        (copied / "adapter_model.safetensors").unlink()
    elif layout == "keys without peft's prefix":
        state = torch.load(copied / "non_lora_trainables.bin", weights_only=True)
        state = {key.removeprefix(PUBLISHED_PREFIX): value for key, value in state.items()}
        torch.save(state, copied / "non_lora_trainables.bin")
    elif layout == "peft's older keys":
        state = load_file(copied / "adapter_model.safetensors")
        assert any(".base_layer.bias" in key for key in state)
        state = {key.replace(".base_layer.bias", ".bias"): value for key, value in state.items()}
        save_file(state, copied / "adapter_model.safetensors")
    elif layout == "no tokenizer":
        for path in copied.glob("token*"):
            path.unlink()
    named = layout == "as written"  # adapter_config.json names the base
    loaded = load(copied, None if named else base)
    assert torch.allclose(logits(loaded), logits(trained), atol=1e-5)
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]


def test_adapters_without_their_base_say_what_is_needed(adapted, tmp_path):
    folder, _, _ = adapted
    copied = tmp_path / "adapters"
    shutil.copytree(folder, copied)
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="not name.*--model-base"):
        load(copied)
    gone = {**config, "base_model_name_or_path": "/nowhere/at/all"}
    (copied / "adapter_config.json").write_text(json.dumps(gone))
    with pytest.raises(ValueError, match="--model-base is missing.*'/nowhere/at/all'.*not a folder"):
        load(copied)


def test_damaged_or_foreign_adapters_are_refused_key_by_key(adapted, parts, tmp_path):
    folder, base, _ = adapted
    copied = tmp_path / "adapters"
    shutil.copytree(folder, copied)
    state = torch.load(copied / "non_lora_trainables.bin", weights_only=True)
    del state["base_model.model.model.mm_projector.mlp.0.weight"]
    torch.save(state, copied / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"missing model\.mm_projector\.mlp\.0\.weight"):
        load(copied, base)
    start = {**LORA, "model_name_or_path": base, "lora_weight_path": folder}
    with pytest.raises(ValueError, match=r"lora_A\.weight.*\[4, 32\].*\[2, 32\].*--lora_r"):
        trainer_of(parts, tmp_path, **{**start, "lora_r": 2})


def test_a_run_starts_from_adapters_and_the_projector_beside_them(adapted, parts, tmp_path):
    folder, base, trained = adapted
    start = {"model_name_or_path": base, "lora_weight_path": folder, "lora_bias": "all"}
    model = trainer_of(parts, tmp_path, **LORA, **start).model
    tiny.assert_same(model, trained, logits)


def copied(source, target, **changes):
    """A copy of a folder with a changed config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps.*1e-06.*1e-05"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_parameters is"),
    ],
)
def test_a_run_does_not_start_from_adapters_of_another_model(adapted, parts, tmp_path, changes, says):
    folder, base, _ = adapted
    other = copied(base, tmp_path / "base", **changes)
    start = {"model_name_or_path": other, "lora_weight_path": folder}
    with pytest.raises(ValueError, match=f"--lora_weight_path .*--model_name_or_path {other}: its {says}"):
        trainer_of(parts, tmp_path, **LORA, **start)


def test_a_run_does_not_start_from_adapters_of_another_family(adapted, parts, tmp_path):
    start = {"model_name_or_path": parts / "language_model", "lora_weight_path": adapted[0]}
    with pytest.raises(ValueError, match="model_type.*'qwen2'.*'llama'"):
        trainer_of(parts, tmp_path, **LORA, **start)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("lora_alpha", 16, "lora_alpha 8.*16.*--lora_alpha 8"),
        ("mm_vision_select_layer", -3, "mm_vision_select_layer.*-2.*-3"),
        ("visualprism_wavelet", "db2", "visualprism_wavelet.*'haar'.*'db2'"),
    ],
)
def test_a_run_does_not_start_from_adapters_with_flags_that_change_what_they_do(
    adapted, parts, tmp_path, flag, value, says
):
    folder, base, _ = adapted
    start = {"model_name_or_path": base, "lora_weight_path": folder, "lora_bias": "all"}
    with pytest.raises(ValueError, match=says):
        trainer_of(parts, tmp_path, **{**LORA, **start, flag: value})


@pytest.mark.parametrize(
    ("flags_given", "says"),
    [
        ({"mm_vision_select_layer": -3}, "mm_vision_select_layer.*-2.*-3"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'patch'"),
        ({"mm_vision_levels": "1 2 3 5"}, "mm_vision_levels is"),
        ({"mm_vision_image_size": 112}, "mm_vision_image_size.*56.*112"),
        ({"scale_factor": 4}, "scale_factor.*2.*4"),
        ({"visualprism_wavelet": "db2"}, "visualprism_wavelet is 'haar'"),
        (
            {"mm_projector_type": "tokenpacker"},
            "mm_projector_type.*'visualprism'.*'tokenpacker'",
        ),
        ({"vision_tower": "siglip"}, r"mm_vision_config\.model_type is 'clip_vision_model'"),
    ],
)
def test_stage_2_refuses_stage_1s_projector_where_the_config_beside_it_says_otherwise(
    parts, stage1, tmp_path, flags_given, says
):
    if "vision_tower" in flags_given:
        flags_given = {"vision_tower": tiny.save_tower(tmp_path / "tower", flags_given["vision_tower"])}
    given = {k: v.split() if k == "mm_vision_levels" else v for k, v in flags_given.items()}
    levels = given.pop("mm_vision_levels", [])
    argv = flags(parts, tmp_path / "out", "conversations.json", version="qwen_2", **given)
    argv += ["--pretrain_mm_mlp_adapter", str(stage1 / "mm_projector.bin")]
    argv += ["--mm_vision_levels", *levels] if levels else []
    with pytest.raises(ValueError, match=rf"--pretrain_mm_mlp_adapter .*its {says}"):
        prepare(argv)


@pytest.mark.parametrize(
    "flags_given",
    [
        {"image_aspect_ratio": "pad", "model_max_length": 77},
        {"elastic_scale_factors": "2"},
        {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": "[[112, 56]]",
            "mm_patch_merge_type": "spatial_unpad",
        },
    ],
    ids=["aspect ratio", "elastic", "learnt newline"],
)
def test_stage_2_may_change_what_needs_no_other_projector(parts, qwen, stage1, tmp_path, flags_given):
    """It may also have another language model, here qwen."""
    projector = stage1 / "mm_projector.bin"
    trainer_of(parts, tmp_path, model_name_or_path=qwen, pretrain_mm_mlp_adapter=projector, **flags_given)


def test_a_projector_without_a_config_beside_it_is_judged_by_its_shapes(parts, stage1, tmp_path):
    shutil.copy(stage1 / "mm_projector.bin", tmp_path)
    trainer_of(parts, tmp_path / "out", pretrain_mm_mlp_adapter=tmp_path / "mm_projector.bin", scale_factor=4)


def test_a_killed_lora_run_started_again_gives_the_uninterrupted_losses_and_weights(parts, tmp_path):
    folder = tmp_path / "run"
    settings = {**LORA, "max_steps": 4, "save_total_limit": 9}
    run(parts, folder, **settings)
    names = ("adapter_model.safetensors", "non_lora_trainables.bin")
    expected, whole_run = [(folder / name).read_bytes() for name in names], losses(folder)
    checkpoint = {path.name for path in (folder / "checkpoint-2").iterdir()}
    assert {"adapter_config.json", *names} <= checkpoint
    assert "model.safetensors" not in checkpoint
    shutil.rmtree(folder / "checkpoint-4")
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.unlink()
    run(parts, folder, **settings)
    assert losses(folder) == whole_run
    assert [(folder / name).read_bytes() for name in names] == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_is_trained_saved_loaded_over_any_base_and_generates(parts, bpe_tokenizer, tmp_path, bits):
    base = tiny.save_language_model(
        tmp_path / "base", hidden_size=64, intermediate_size=128
    )  # quantisation has blocks of 64
    bpe_tokenizer.save_pretrained(base)
    settings = {**LORA, "model_name_or_path": base, "bits": bits, "lora_dropout": 0.0}
    trained = run(parts, tmp_path / "run", **settings)
    maps = {type(m).__name__ for name, m in trained.named_modules() if name.endswith("base_layer")}
    assert maps == {"Linear4bit" if bits == 4 else "Linear8bitLt"}
    for part in (trained.get_vision_tower(), trained.get_projector(), trained.lm_head):
        assert all(parameter.is_floating_point() for parameter in part.parameters())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "quantization_config" not in config
    quantised = load(tmp_path / "run", base, load_4bit=bits == 4, load_8bit=bits == 8)
    assert torch.allclose(logits(quantised), logits(trained), atol=1e-5)
    full = load(tmp_path / "run", base)
    assert not hasattr(full.config, "quantization_config")
    assert not torch.equal(logits(full), logits(quantised))
    for model in (quantised, full):
        assert model.generate(IDS, images=IMAGES, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_a_projector_trained_over_quantised_weights_is_all_that_is_left(parts, tmp_path):
    trained = run(parts, tmp_path, freeze_backbone=True, bits=4)
    assert not list(tmp_path.glob("model*"))
    projector = read_projector(tmp_path / "mm_projector.bin")
    assert torch.equal(projector["mlp.0.weight"], trained.get_projector().mlp[0].weight)
    load(tmp_path, parts / "language_model")


def test_a_tower_that_learnt_is_loaded_from_the_whole_model_and_from_beside_adapters(parts, tmp_path):
    settings = {"unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 1e-2}
    whole_model = run(parts, tmp_path / "whole", **settings)
    adapted_model = run(parts, tmp_path / "lora", **settings, **LORA)
    loaded = load(tmp_path / "lora", parts / "language_model")
    assert torch.allclose(logits(loaded), logits(adapted_model), atol=1e-5)
    assert torch.allclose(logits(load(tmp_path / "whole")), logits(whole_model), atol=1e-5)
    original = load_file(parts / "tower" / "model.safetensors")
    learnt = read_trainables(tmp_path / "lora")
    name = "encoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(learnt[f"model.vision_tower.vision_tower.{name}"], original[name])


def test_stage_1_then_2_then_lora_then_merged_gives_the_logits_of_training(parts, whole, tmp_path):
    trained = run(parts, tmp_path / "lora", model_name_or_path=whole, **LORA)
    folders = {
        "--model-path": tmp_path / "lora",
        "--model-base": whole,
        "--save-model-path": tmp_path / "merged",
    }
    script = Path(__file__).parents[2] / "scripts" / "merge_lora_weights.py"
    flags_given = [str(item) for pair in folders.items() for item in pair]
    subprocess.run([sys.executable, script, *flags_given], check=True, timeout=300)
    for folder in (tmp_path / "lora", tmp_path / "merged"):
        tokenizer = load_tokenizer(folder, padding_side="left")
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert prompt == question_prompt("Which colour?", 1, conv_templates["qwen_2"])
    assert torch.allclose(logits(load(tmp_path / "merged")), logits(trained), atol=1e-5)


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_lora_of_two_ranks_goes_on_exactly_from_checkpoints_without_frozen_weights(
    parts, whole, stage1, tmp_path, config
):
    """It starts from a multimodal checkpoint and replaces the projector; ZeRO-3 partitions all weights."""
    changes = {
        **LORA,
        "model_name_or_path": whole,
        "pretrain_mm_mlp_adapter": stage1 / "mm_projector.bin",
        "version": "qwen_2",
        "deepspeed": f"scripts/{config}.json",
        "per_device_train_batch_size": 1,
        "max_steps": 4,
        "save_total_limit": 9,
    }
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = flags(parts, folder, "conversations.json", **changes)
    assert ranks.run(argv, log, world_size=2) == [0, 0], log.read_text()
    names = ("adapter_model.safetensors", "non_lora_trainables.bin")
    expected, whole_run = [(folder / name).read_bytes() for name in names], losses(folder)
    kept = next((folder / "checkpoint-2" / "global_step2").glob("*mp_rank_00_model_states.pt"))
    module = torch.load(kept, weights_only=False)["module"]
    assert not [name for name in module if "embed_tokens" in name or "base_layer" in name or "tower" in name]
    shutil.rmtree(folder / "checkpoint-4")
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.unlink()
    assert ranks.run(argv, log, world_size=2) == [0, 0], log.read_text()
    assert losses(folder) == whole_run
    assert [(folder / name).read_bytes() for name in names] == expected
    load(folder, whole)
