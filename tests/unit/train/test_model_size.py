"""A model's size, counted without weights, agrees with a real forward pass and with a GPU's peaks."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from budgets import peak_gib, save_shapes
from tiny import save_language_model, save_tower

from llava.benchmark.speed.shapes import SHAPES
from llava.errors import UserError
from llava.train.model_size import saved_bytes, size_of
from llava.train.recipe import parse

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[3] / "docs" / "results"
LORA = ["--lora_enable", "True", "--lora_r", "4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "qwen2", "mistral", "mpt"):
        save_language_model(folder / family, family)
    save_tower(folder / "clip")
    return folder


@cache
def size(folders: Path, *flags: str, model: str = "llama"):
    given = ["--model_name_or_path", str(folders / model), "--vision_tower", str(folders / "clip")]
    given += ["--data_path", "data.json", "--mm_projector_type", "visualprism", "--gpu_memory_mib", "1"]
    return size_of(*parse([*given, *flags])[1:])


@pytest.mark.parametrize("model", ["llama", "qwen2", "mistral"])
def test_positions_keep_what_a_real_forward_pass_keeps(folders, model):
    from llava.model.language_model.builder import read_config, type_of
    from llava.model.training_cache import KeepsNothing

    config = read_config(folders / model)
    real = type_of(config).from_pretrained(folders / model, config=config).bfloat16().train()
    hidden = torch.randn(8, 64, 32, dtype=torch.bfloat16, requires_grad=True)
    kept = saved_bytes(
        lambda: real.get_decoder()(inputs_embeds=hidden, use_cache=False, past_key_values=KeepsNothing()),
        real,
    )
    counted = size(folders, "--bf16", "True", "--model_max_length", "64", model=model)
    assert counted.position == pytest.approx(kept / (8 * 64), rel=0.03)
    assert counted.layer_position < counted.position < 3 * counted.layer_position
    assert counted.hidden == 64


def test_a_position_of_mpt_keeps_its_scores_of_all_others(folders):
    """Its attention is not a fused kernel."""
    short, long = (
        size(folders, "--model_max_length", str(length), model="mpt").position for length in (64, 512)
    )
    assert long - short >= 2 * 2 * 4 * (512 - 64)  # layers, heads, bytes


def test_autocast_keeps_more_than_deepspeed_and_adapters_more_than_full_training(folders):
    plain = size(folders, "--bf16", "True")
    assert size(folders, "--bf16", "True", "--deepspeed", "none").position > plain.position
    assert size(folders, "--bf16", "True", *LORA).position > plain.position
    assert plain.position < size(folders).position <= 2 * plain.position  # some tensors are always in float32


def test_a_frozen_projector_keeps_nothing_of_a_view(folders):
    assert size(folders).view > 0
    assert size(folders, "--freeze_mm_mlp_adapter", "True").view == 0


def test_tokens_and_tiles_of_a_view(folders):
    assert (size(folders).tokens, size(folders).views) == (4, 1)
    assert size(folders, "--elastic_scale_factors", "4", "1").tokens == 16
    assert size(folders, "--image_aspect_ratio", "slice", "--patch_num", "16").views == 17
    assert size(folders, "--image_aspect_ratio", "anyres").views == 5


def test_quantised_weights_take_the_space_of_their_bits(folders):
    frozen = {
        bits: size(folders, "--bf16", "True", "--bits", bits, *LORA).frozen for bits in ("16", "8", "4")
    }
    packed = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)  # weights of the linear maps of both layers
    assert frozen["16"] - frozen["8"] == packed
    assert frozen["16"] - frozen["4"] == pytest.approx(packed * (2 - 4.13 / 8), abs=1)


def test_mpts_embeddings_are_no_quantised_map(folders):
    frozen = {
        bits: size(folders, "--bf16", "True", "--bits", bits, *LORA, model="mpt").frozen
        for bits in ("16", "8")
    }
    assert frozen["16"] - frozen["8"] == 2 * (4 + 2 * 4) * 32 * 32  # attention and MLP of both blocks


def test_a_model_that_cannot_be_found_is_named(folders):
    with pytest.raises(UserError, match="no/such/model"):
        size(folders, "--model_name_or_path", "no/such/model")
    with pytest.raises(UserError, match="--vision_tower is missing"):
        size(folders, "--vision_tower", "")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"), SHAPES.values())


@pytest.mark.parametrize(
    "name", ["step_1.5b_batch16", "step_1.5b_batch16_liger", "step_1.5b_liger", "step_7b_lora_liger"]
)
def test_a_step_measured_on_a_gpu_needs_what_the_budget_says(shapes, name):
    measured = json.loads((RESULTS / "gpu_nvidia_h200" / f"{name}.json").read_text())
    for row in measured["rows"][:2]:
        assert peak_gib(shapes, measured, row) == pytest.approx(row["peak_gib"], rel=0.03)
