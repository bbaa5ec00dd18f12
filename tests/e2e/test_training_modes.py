"""Every way to train: what changes and what does not, what is left, and how a run goes on."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_training import flags, losses
from transformers import AutoModelForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.adapters import PUBLISHED_PREFIX, read_trainables
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_projector
from llava.train import saving
from llava.train.train import prepare, train
from llava.train.trainable import part_of

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8]])
IMAGES = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2}


@pytest.fixture(scope="session")
def qwen(parts, bpe_tokenizer):
    """A language model whose attention has biases."""
    folder = parts / "qwen2"
    tiny.save_language_model(folder, "qwen2")
    bpe_tokenizer.save_pretrained(folder)
    return folder


def trainer_of(parts, output_dir, **changes):
    """Ready for its first step, with nothing written on the way."""
    common = {"version": "qwen_2", "max_steps": 2, "save_strategy": "no"}
    return prepare(flags(parts, output_dir, "conversations.json", **{**common, **changes}))


def learns_in(mode):
    """Mode to a predicate: does a parameter of this part and name learn?"""

    def is_adapter(part, name):
        return part == "language_model" and ".lora_" in name

    return {
        "full": lambda part, name: part != "vision_tower",
        "projector": lambda part, name: part == "mm_projector",
        "projector frozen": lambda part, name: part == "language_model",
        "backbone frozen": lambda part, name: part == "mm_projector",
        "tower": lambda part, name: True,
        "lora none": lambda part, name: part == "mm_projector" or is_adapter(part, name),
        "lora all": lambda part, name: (
            part == "mm_projector"
            or is_adapter(part, name)
            or (part == "language_model" and name.endswith(".bias"))
        ),
        "lora tower": lambda part, name: part != "language_model" or is_adapter(part, name),
        "lora projector frozen": is_adapter,
    }[mode]


MODES = {
    "full": ("full", {}),
    "stage 1": ("projector", {"tune_mm_mlp_adapter": True}),
    "projector frozen": ("projector frozen", {"freeze_mm_mlp_adapter": True}),
    "backbone frozen": ("backbone frozen", {"freeze_backbone": True}),
    "tower": ("tower", {"unfreeze_mm_vision_tower": True}),
    "lora": ("lora none", LORA),
    "lora, all biases": ("lora all", {**LORA, "lora_bias": "all"}),
    "lora, biases of its maps": ("lora all", {**LORA, "lora_bias": "lora_only"}),
    "lora, projector frozen": ("lora projector frozen", {**LORA, "freeze_mm_mlp_adapter": True}),
    "lora and tower": ("lora tower", {**LORA, "unfreeze_mm_vision_tower": True}),
    "qlora 4": ("lora none", {**LORA, "bits": 4}),
    "qlora 8": ("lora none", {**LORA, "bits": 8}),
    "stage 1 over 4 bits": ("projector", {"tune_mm_mlp_adapter": True, "bits": 4}),
    "backbone frozen in 8 bits": ("backbone frozen", {"freeze_backbone": True, "bits": 8}),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_what_it_should_and_nothing_else(parts, qwen, tmp_path, mode):
    kind, changes = MODES[mode]
    trainer = trainer_of(parts, tmp_path, model_name_or_path=qwen, **changes)
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    idle = {id(parameter) for parameter in model.get_vision_tower().idle_parameters()}
    should = {
        name
        for name, parameter in model.named_parameters()
        if learns_in(kind)(part_of(name), name) and id(parameter) not in idle
    }
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {
        name for name in before if name.endswith(("running_mean", "running_var", "batches_tracked"))
    }
    if any(part_of(name) == "mm_projector" for name in should):
        should |= statistics
    assert changed == should


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, images=IMAGES).logits


def run(parts, output_dir, **changes):
    """A run of conversations to its end, and the model it ended with."""
    trainer = trainer_of(parts, output_dir, **{"save_strategy": "steps", **changes})
    checkpoints = saving.checkpoints(output_dir)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    trainer.save_result()
    return trainer.model


def load(folder, base=None, **options):
    return load_pretrained_model(str(folder), base and str(base), **options)[1]


@pytest.fixture(scope="module")
def stage1(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes") / "stage1"
    train(flags(parts, folder, "captions.json", tune_mm_mlp_adapter=True))
    return folder


@pytest.fixture(scope="module")
def whole(parts, stage1):
    """Stage 2's folder, which sees by itself."""
    folder = stage1.parent / "stage2"
    run(parts, folder, pretrain_mm_mlp_adapter=stage1 / "mm_projector.bin")
    return folder


@pytest.fixture(scope="module")
def adapted(parts, qwen, stage1):
    """(LoRA's folder, its base, the model in training): biases learn too."""
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


@pytest.mark.parametrize("layout", ["as written", "bin", "keys without peft's prefix", "no tokenizer"])
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
    with pytest.raises(ValueError, match="give it with --model-base"):
        load(copied)
    gone = {**config, "base_model_name_or_path": "/nowhere/at/all"}
    (copied / "adapter_config.json").write_text(json.dumps(gone))
    with pytest.raises(ValueError, match="--model-base is missing.*'/nowhere/at/all' is not a folder"):
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
    with pytest.raises(ValueError, match=r"lora_A\.weight is \[4, 32\], the model takes \[2, 32\].*--lora_r"):
        trainer_of(parts, tmp_path, **{**start, "lora_r": 2})


def test_a_run_starts_from_adapters_and_the_projector_beside_them(adapted, parts, tmp_path):
    folder, base, trained = adapted
    start = {"model_name_or_path": base, "lora_weight_path": folder, "lora_bias": "all"}
    model = trainer_of(parts, tmp_path, **LORA, **start).model
    assert torch.equal(logits(model), logits(trained))


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
    base = tiny.save_language_model(tmp_path / "base", hidden_size=64, intermediate_size=128)  # blocks of 64
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


def test_each_part_has_its_own_learning_rate_and_norms_and_biases_no_decay(parts, tmp_path):
    rates = {"learning_rate": 1e-3, "mm_projector_lr": 2e-3, "mm_vision_tower_lr": 3e-3, "weight_decay": 0.1}
    trainer = trainer_of(parts, tmp_path, unfreeze_mm_vision_tower=True, **rates)
    groups = trainer.create_optimizer().param_groups
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {
        (rate, decay) for rate in (1e-3, 2e-3, 3e-3) for decay in (0.0, 0.1)
    }
    of = {id(p): group for group in groups for p in group["params"]}
    tower = trainer.model.get_vision_tower().layers[0]
    assert of[id(tower.self_attn.q_proj.weight)]["lr"] == 3e-3
    assert of[id(tower.layer_norm1.weight)]["weight_decay"] == 0
    assert len(of) == sum(p.requires_grad for p in trainer.model.parameters())


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
    assert torch.allclose(logits(load(tmp_path / "merged")), logits(trained), atol=1e-5)


# Going on from a checkpoint that sees


def test_a_multimodal_checkpoint_goes_on_with_its_own_eyes(parts, whole, tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer = trainer_of(
            parts, tmp_path, model_name_or_path=whole, mm_projector_type="visualprism", version=None
        )
    assert torch.equal(logits(trainer.model), logits(load(whole)))
    assert trainer.model.config.conv_version == "qwen_2"


def test_what_needs_no_other_weights_may_change(parts, whole, tmp_path):
    changes = {"scale_factor": 4, "image_aspect_ratio": "pad", "version": "v1", "mm_vision_select_layer": 5}
    trainer = trainer_of(parts, tmp_path, model_name_or_path=whole, **changes)  # -2 of 6 layers
    config = trainer.model.config
    assert trainer.model.num_visual_tokens == 1
    assert (config.scale_factor, config.image_aspect_ratio, config.conv_version) == (4, "pad", "v1")
    trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mm_projector_type": "mlp2x_gelu"},
            "--mm_projector_type mlp2x_gelu, the checkpoint's is visualprism",
        ),
        ({"mm_vision_select_layer": -1}, "--mm_vision_select_layer -1, the checkpoint's is -2"),
        ({"visualprism_wavelet": "db2"}, "--visualprism_wavelet db2, the checkpoint's is haar"),
        ({"visualprism_paths": "local"}, "--visualprism_paths local"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            "--mm_patch_merge_type spatial_unpad, the checkpoint's is flat",
        ),
        ({"visualprism_norm": "layer"}, "--visualprism_norm layer, the checkpoint's is batch"),
    ],
)
def test_a_flag_that_contradicts_the_weights_is_refused_with_both_values(
    parts, whole, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        trainer_of(parts, tmp_path, model_name_or_path=whole, **changes)


def test_another_scale_is_refused_where_the_projector_was_made_for_one(parts, tmp_path):
    settings = {"mm_projector_type": "resampler", "scale_factor": 2}
    run(parts, tmp_path / "whole", **settings)
    settings["scale_factor"] = 4
    with pytest.raises(ValueError, match="--scale_factor 4, the checkpoint's is 2"):
        trainer_of(parts, tmp_path, model_name_or_path=tmp_path / "whole", **settings)


def test_another_copy_of_the_tower_leaves_the_checkpoints_own_weights(parts, whole, tmp_path, caplog):
    other = tiny.save_tower(tmp_path / "same-form")
    with caplog.at_level("INFO"):
        trainer = trainer_of(parts, tmp_path / "run", model_name_or_path=whole, vision_tower=other)
    assert "whose own weights are kept" in caplog.text
    assert torch.equal(logits(trainer.model), logits(load(whole)))
    foreign = tiny.save_tower(tmp_path / "siglip", "siglip")
    with pytest.raises(ValueError, match="model_type siglip_vision_model instead of clip_vision_model"):
        trainer_of(parts, tmp_path / "run", model_name_or_path=whole, vision_tower=foreign)


def test_stage_1s_projector_replaces_a_checkpoints(parts, whole, stage1, tmp_path):
    file = stage1 / "mm_projector.bin"
    changes = {"model_name_or_path": whole, "pretrain_mm_mlp_adapter": file}
    projector = trainer_of(parts, tmp_path, **changes).model.get_projector()
    assert torch.equal(projector.mlp[0].weight, read_projector(file)["mlp.0.weight"])


def test_adapters_over_a_multimodal_checkpoint_come_back_over_it(parts, whole, tmp_path):
    trained = run(
        parts, tmp_path, model_name_or_path=whole, **LORA, freeze_mm_mlp_adapter=True, scale_factor=4
    )
    loaded = load(tmp_path, whole)
    assert loaded.config.scale_factor == 4
    assert torch.allclose(logits(loaded), logits(trained), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [("stage1", "holds no language model"), ("adapted", "merge adapters with scripts/merge_lora_weights.py")],
)
def test_a_folder_without_a_language_model_is_no_start(request, parts, tmp_path, source, message):
    folder = request.getfixturevalue(source)
    folder = folder[0] if isinstance(folder, tuple) else folder
    with pytest.raises(ValueError, match=message):
        trainer_of(parts, tmp_path, model_name_or_path=folder)


@pytest.mark.parametrize("name", ["no-such/model", "/nowhere/at/all"])
def test_a_name_that_is_neither_folder_nor_on_the_hub_is_named(parts, tmp_path, name):
    with pytest.raises(ValueError, match=f"--model_name_or_path '{name}' is not a folder"):
        trainer_of(parts, tmp_path, model_name_or_path=name)


# Precision, memory, attention

CHECKPOINTED = {
    "full": {},
    "stage 1": {"tune_mm_mlp_adapter": True},
    "tower": {"unfreeze_mm_vision_tower": True},
    "lora": LORA,
    "lora, projector frozen": {**LORA, "freeze_mm_mlp_adapter": True},
    "lora and tower": {**LORA, "unfreeze_mm_vision_tower": True},
    "qlora": {**LORA, "bits": 4},
}


@pytest.mark.parametrize("mode", CHECKPOINTED)
def test_gradient_checkpointing_reaches_what_learns_and_changes_no_gradient(
    parts, tmp_path, monkeypatch, mode
):
    """Of the second step, when adapters have left their zero start."""
    from transformers import modeling_layers

    gradients, recomputed = [], []
    call = modeling_layers.GradientCheckpointingLayer.__call__
    for checkpointing in (False, True):
        trainer = trainer_of(
            parts,
            tmp_path,
            **{"lora_dropout": 0.0, **CHECKPOINTED[mode]},
            gradient_checkpointing=checkpointing,
        )
        towers = set(map(id, trainer.model.get_vision_tower().layers))

        def counted(layer, *args, towers=towers, **kwargs):
            if layer.gradient_checkpointing and layer.training and id(layer) in towers:
                recomputed.append(layer)
            return call(layer, *args, **kwargs)

        monkeypatch.setattr(modeling_layers.GradientCheckpointingLayer, "__call__", counted)
        step = trainer.training_step

        def recording(model, inputs, *args, step=step, **kwargs):
            loss = step(model, inputs, *args, **kwargs)
            gradients[-1] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            return loss

        gradients.append({})
        trainer.training_step = recording
        trainer.train()
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert plain
    for name, value in plain.items():
        assert torch.allclose(value, checkpointed[name], atol=1e-6), name
    assert bool(recomputed) == ("tower" in mode)


def test_a_frozen_tower_keeps_no_graph_under_gradient_checkpointing(parts, tmp_path):
    trainer = trainer_of(parts, tmp_path, gradient_checkpointing=True, max_steps=1)
    trainer.train()
    trainer.model.train()
    tower = trainer.model.get_vision_tower()
    assert not tower.training
    assert not tower(IMAGES).selected.requires_grad


@pytest.mark.parametrize(
    "changes", [{}, LORA, {"tune_mm_mlp_adapter": True}], ids=["full", "lora", "stage 1"]
)
def test_bf16_holds_what_is_frozen_and_float32_what_learns(parts, tmp_path, changes):
    trainer = trainer_of(parts, tmp_path, bf16=True, **changes)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        wide = parameter.requires_grad or part_of(name) == "mm_projector"
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name


def test_fp16_on_a_cpu_is_refused_with_a_reason(parts, tmp_path):
    with pytest.raises(ValueError, match="--fp16.*--bf16"):
        trainer_of(parts, tmp_path, fp16=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_asked_for_reaches_the_model(parts, tmp_path, attention):
    trainer = trainer_of(parts, tmp_path, attn_implementation=attention)
    assert trainer.model.config._attn_implementation == attention


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_a_missing_flash_attn_is_said_so(parts, tmp_path):
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        trainer_of(parts, tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower_lr": 1e-5}, "add --unfreeze_mm_vision_tower"),
        ({"lora_enable": True, "freeze_backbone": True}, "--lora_enable adapts the language model"),
        ({"lora_weight_path": "x"}, "add --lora_enable"),
        ({"bits": 4}, "weights of so few bits cannot learn"),
        ({"bits": 4, "freeze_backbone": True, "unfreeze_mm_vision_tower": True}, "would be lost"),
        ({"bits": 4, "deepspeed": "scripts/zero3.json", **LORA}, "ZeRO-3 cuts weights into pieces"),
        ({**LORA, "mm_use_im_start_end": True}, "add words, whose embeddings are frozen here"),
    ],
)
def test_what_contradicts_a_mode_is_refused(parts, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(parts, tmp_path, **changes)
