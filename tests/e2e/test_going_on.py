"""Training that continues from a multimodal checkpoint: what may change, and what its weights fix."""

import pytest
import tiny
import torch
from messages import assert_names
from modes import LORA, load, logits, run, trainer_of

from llava.model.checkpoint import read_projector
from llava.train.arguments import choose_template


def test_a_multimodal_checkpoint_continues_with_its_own_vision_settings(parts, whole, tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer = trainer_of(
            parts, tmp_path, model_name_or_path=whole, mm_projector_type="visualprism", version=None
        )
    tiny.assert_same(trainer.model, load(whole), logits)
    assert trainer.model.config.conv_version == "qwen_2"


def test_what_needs_no_other_weights_may_change(parts, whole, tmp_path):
    changes = {"scale_factor": 4, "image_aspect_ratio": "pad", "version": "v1", "mm_vision_select_layer": 5}
    trainer = trainer_of(parts, tmp_path, model_name_or_path=whole, **changes)  # -2 of 6 layers
    config = trainer.model.config
    assert trainer.model.num_visual_tokens == 1
    assert (config.scale_factor, config.image_aspect_ratio, config.conv_version) == (4, "pad", "v1")
    trainer.train()


@pytest.fixture(scope="module")
def adapters(parts, tmp_path_factory):
    """A LoRA folder for the plain language model, trained with ChatML."""
    folder = tmp_path_factory.mktemp("adapters")
    run(parts, folder, **LORA, version="qwen_2")
    return folder


@pytest.mark.parametrize(
    ("start", "version", "trained_with"),
    [
        ("whole", None, "qwen_2"),
        ("whole", "qwen_2", "qwen_2"),
        ("whole", "v1", "v1"),
        ("adapters", None, "qwen_2"),
        ("adapters", "vicuna_v1", "vicuna_v1"),
        ("stage1", None, "vicuna_v1"),
        ("stage1", "mpt", "mpt"),
        ("language model", None, "vicuna_v1"),
    ],
)
def test_the_template_is_the_starts_own_and_a_change_is_said(
    parts, whole, adapters, stage1, tmp_path, caplog, start, version, trained_with
):
    """Stage 1 trains with `plain`, but its projector does not pass this template on."""
    changes = {
        "whole": {"model_name_or_path": whole},
        "adapters": {**LORA, "lora_weight_path": adapters},
        "stage1": {"pretrain_mm_mlp_adapter": stage1 / "mm_projector.bin"},
        "language model": {},
    }[start]
    trainer = trainer_of(parts, tmp_path, **changes, version=version)
    assert trainer.model.config.conv_version == trained_with
    assert trainer.train_dataset.builder.template == trained_with
    source = {"whole": whole, "adapters": adapters}.get(start)
    said = f"--version {version} changes the conversation template: {source} was trained with qwen_2."
    assert (said in caplog.text) == (source is not None and trained_with != "qwen_2")


def test_another_name_of_the_same_template_is_no_change(caplog):
    assert choose_template("vicuna_v1", {"a": "v1"}) == "vicuna_v1"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mm_projector_type": "mlp2x_gelu"},
            "--mm_projector_type mlp2x_gelu.*visualprism",
        ),
        ({"mm_vision_select_layer": -1}, "--mm_vision_select_layer -1.*-2"),
        ({"visualprism_wavelet": "db2"}, "--visualprism_wavelet db2.*haar"),
        ({"visualprism_paths": "local"}, "--visualprism_paths local"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            "--mm_patch_merge_type spatial_unpad.*flat",
        ),
        ({"visualprism_norm": "layer"}, "--visualprism_norm layer.*batch"),
        ({"mm_projector_norm": True}, "--mm_projector_norm True.*False"),
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
    with pytest.raises(ValueError, match="--scale_factor 4.*2"):
        trainer_of(parts, tmp_path, model_name_or_path=tmp_path / "whole", **settings)


def test_another_copy_of_the_tower_leaves_the_checkpoints_own_weights(parts, whole, tmp_path, caplog):
    other = tiny.save_tower(tmp_path / "same-form")
    with caplog.at_level("INFO"):
        trainer = trainer_of(parts, tmp_path / "run", model_name_or_path=whole, vision_tower=other)
    assert_names(caplog.text, "--vision_tower", str(other), "weights of the tower")
    tiny.assert_same(trainer.model, load(whole), logits)
    foreign = tiny.save_tower(tmp_path / "siglip", "siglip")
    with pytest.raises(ValueError, match="siglip_vision_model.*clip_vision_model"):
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


def test_a_folder_without_a_language_model_is_no_start(parts, stage1, tmp_path):
    with pytest.raises(ValueError, match="scripts/merge_lora_weights.py"):
        trainer_of(parts, tmp_path, model_name_or_path=stage1)


@pytest.mark.parametrize("name", ["no-such/model", "/nowhere/at/all"])
def test_a_name_that_is_neither_folder_nor_on_the_hub_is_named(parts, tmp_path, name):
    with pytest.raises(ValueError, match=f"--model_name_or_path '{name}'.*not a folder"):
        trainer_of(parts, tmp_path, model_name_or_path=name)
