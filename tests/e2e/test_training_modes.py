"""All ways to train: the trained parts, their learning rates and types, and contradictory flags."""

import importlib.util

import pytest
import torch
from modes import IMAGES, LORA, trainer_of
from training_parts import flags

from llava.errors import UserError
from llava.train.train import prepare
from llava.train.trainable import part_of


def learns_in(mode):
    """Maps a mode to a function that tells whether a parameter of a part is trained, by its name."""

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
    """It compares the second step, when adapters are no longer zero."""
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


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("flash_attention_2", "flash_attn", "flash-attn"),
        ("flash_attention_3", "flash_attn_interface", "flash-attn-3"),
    ],
)
def test_a_missing_flash_attn_is_said_so(parts, tmp_path, name, module, package):
    if importlib.util.find_spec(module) or importlib.util.find_spec("kernels"):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=f"{name}: {package}.*not installed"):
        trainer_of(parts, tmp_path, attn_implementation=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataloader_drop_last": True}, "drop_last True.* 12 records.* 16 "),
        ({"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1}, "drop_last True.*no batch"),
        ({"dataloader_drop_last": True, "group_by_modality_length": True}, "drop_last True.*no batch"),
        ({"dataloader_drop_last": True, "packing": True}, "drop_last True.* 1 rows"),
        ({"dataloader_drop_last": True, "data_weights": 0.5}, "drop_last True.* 6 records"),
        ({"data_weights": 0.01}, "--data_weights .* empty epoch"),
        ({"max_steps": 0}, "--max_steps 0 .*no step"),
        ({"max_steps": -1, "num_train_epochs": 0}, "--num_train_epochs 0.*no step"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size.*1.*0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps.*1.*0"),
    ],
)
def test_an_epoch_without_a_batch_or_a_step_is_refused(parts, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        trainer_of(parts, tmp_path, **{"per_device_train_batch_size": 16, **changes})


def test_a_file_of_which_no_record_is_left_is_named(parts, tmp_path):
    files = [str(parts / "conversations.json"), str(parts / "captions.json")]
    common = flags(parts, tmp_path, "conversations.json", version="qwen_2")
    argv = [*common, "--data_path", *files, "--data_weights", "1", "0.04"]
    with pytest.raises(UserError, match="12 records.*captions.json"):
        prepare(argv)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower_lr": 1e-5}, "add --unfreeze_mm_vision_tower"),
        ({"lora_enable": True, "freeze_backbone": True}, "--lora_enable.*--freeze_backbone"),
        ({"lora_weight_path": "x"}, "add --lora_enable"),
        ({"bits": 4}, "--bits.*--lora_enable"),
        (
            {"bits": 4, "freeze_backbone": True, "unfreeze_mm_vision_tower": True},
            "--bits 4.*--unfreeze_mm_vision_tower",
        ),
        ({"bits": 4, "deepspeed": "scripts/zero3.json", **LORA}, "--bits.*ZeRO-3.*scripts/zero2.json"),
        ({**LORA, "mm_use_im_start_end": True}, "--mm_use_im_start_end.*frozen"),
    ],
)
def test_what_contradicts_a_mode_is_refused(parts, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(parts, tmp_path, **changes)
