"""--recompute_above: the batches that keep activations; the budget's counts agree with the model."""

import pytest
import torch
from modes import LORA, trainer_of
from training_parts import flags
from transformers import modeling_layers

from llava.errors import UserError
from llava.train.arguments import parse
from llava.train.model_size import size_of
from llava.train.recipe import parse as parse_recipe
from llava.train.train import prepare


@pytest.mark.parametrize("mode", [{}, LORA, {"tune_mm_mlp_adapter": True}], ids=["full", "lora", "stage 1"])
def test_batches_of_up_to_so_many_positions_keep_their_activations(parts, tmp_path, monkeypatch, mode):
    limit = 55
    options = {"gradient_checkpointing": True, "recompute_above": limit, "per_device_train_batch_size": 1}
    trainer = trainer_of(parts, tmp_path, **mode, **options, max_steps=6)
    merge, call = trainer.model.merge_inputs, modeling_layers.GradientCheckpointingLayer.__call__
    layers, sizes, recomputed = set(map(id, trainer.model.get_decoder().layers)), [], []

    def merge_inputs(*args, **kwargs):
        merged = merge(*args, **kwargs)
        sizes.append(merged.inputs_embeds.shape[:2].numel())
        return merged

    def counted(layer, *args, **kwargs):
        if id(layer) in layers:
            recomputed.append(layer.gradient_checkpointing)
        return call(layer, *args, **kwargs)

    monkeypatch.setattr(trainer.model, "merge_inputs", merge_inputs)
    monkeypatch.setattr(modeling_layers.GradientCheckpointingLayer, "__call__", counted)
    trainer.train()
    assert min(sizes) <= limit < max(sizes)
    assert recomputed == [size > limit for size in sizes for _ in layers]


def test_it_changes_no_weight(parts, tmp_path):
    outcomes = []
    for options in ({}, {"gradient_checkpointing": True, "recompute_above": 40}):
        trainer = trainer_of(parts, tmp_path, **options, max_steps=4, per_device_train_batch_size=1)
        trainer.train()
        outcomes.append(trainer.model.state_dict())
    for name, value in outcomes[0].items():
        torch.testing.assert_close(value, outcomes[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recompute_above": 100}, "--recompute_above.*--gradient_checkpointing True"),
        ({"recompute_above": -1, "gradient_checkpointing": True}, "--recompute_above.*-1"),
    ],
)
def test_contradictions_end_the_run_before_it_starts(parts, tmp_path, given, said):
    with pytest.raises(UserError, match=said):
        prepare(flags(parts, tmp_path, "conversations.json", **given))


def test_zero_3_is_refused_where_ranks_would_wait_for_one_another(parts, tmp_path):
    pytest.importorskip("deepspeed")
    given = {"gradient_checkpointing": True, "recompute_above": 100, "deepspeed": "scripts/zero3.json"}
    with pytest.raises(UserError, match="--recompute_above.*ZeRO-3.*scripts/zero2.json"):
        parse(flags(parts, tmp_path, "conversations.json", **given))


@pytest.mark.parametrize(
    "mode",
    [{}, LORA, {"tune_mm_mlp_adapter": True}, {"unfreeze_mm_vision_tower": True}, {"freeze_backbone": True}],
    ids=["full", "lora", "stage 1", "tower", "frozen backbone"],
)
def test_a_budget_counts_the_parameters_that_a_trainer_holds(parts, tmp_path, mode):
    model = trainer_of(parts, tmp_path, bf16=True, **mode).model
    argv = flags(parts, tmp_path, "conversations.json", bf16=True, deepspeed="none", **mode)
    size = size_of(*parse_recipe([*argv, "--gpu_memory_mib", "1"])[1:])
    learning = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert size.learning == sum(p.numel() for p in learning)
    assert size.frozen == sum(p.numel() * p.element_size() for p in frozen)
    assert size.layers == len(model.get_decoder().layers)
    assert size.tokens == model.num_visual_tokens
