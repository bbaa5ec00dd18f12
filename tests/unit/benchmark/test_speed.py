"""Whole models by shape: counts agree with a run, both models give equal answers, and files are written."""

import json

import pytest
import torch
from transformers import DynamicCache

from llava.benchmark.__main__ import main
from llava.benchmark.speed import capacity, measure, shapes
from llava.benchmark.speed.models import build_model, build_prompt, build_theirs, build_variants
from llava.benchmark.timing import gflop

SMALL_TOWER = {**shapes.TINY_TOWER, "hidden_size": 16, "intermediate_size": 32}
SMALL_DINOV2 = {**shapes.DINOV2_S, "hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2}
SMALL = {
    "llama": shapes.Shape("small", SMALL_TOWER, 32, 2, 2, 4, 2, 48, 96),
    "llama, tied, dinov2": shapes.Shape("small", SMALL_DINOV2, 32, 2, 2, 4, 1, 48, 96, tied=True),
    "qwen2": shapes.Shape("small", SMALL_TOWER, 32, 3, 3, 4, 4, 48, 96, family="qwen2", tied=True),
}
every_family = pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", SMALL["llama"])


@every_family
@torch.no_grad()
def test_counts_are_those_of_torch(shape):
    model = build_model(shape, "cpu", torch.float32)
    tower, prompt = model.get_vision_tower(), build_prompt(model, 2, 8, torch.float32)
    counted = gflop(lambda: tower(prompt.images))
    assert 1e9 * counted == pytest.approx(shapes.tower_flop(shape.tower, 2, tower.depth))
    embeds = torch.randn(2, 20, shape.width)
    for kept in (1, 20):
        counted = gflop(lambda kept=kept: model(inputs_embeds=embeds, logits_to_keep=kept))
        assert 1e9 * counted == pytest.approx(shapes.language_flop(shape, 2, 20, kept))


@every_family
@torch.no_grad()
def test_the_cache_takes_the_bytes_that_are_counted(shape):
    model = build_model(shape, "cpu", torch.bfloat16)
    cache = DynamicCache()
    model(inputs_embeds=torch.randn(1, 20, shape.width).bfloat16(), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == shapes.kv_bytes(shape, 20, 2)


@every_family
@torch.no_grad()
def test_transformers_own_has_the_same_weights_and_says_the_same(shape):
    model = build_model(shape, "cpu", torch.float32)
    theirs = build_theirs(model)
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert {t.data_ptr() for t in (*theirs.parameters(), *theirs.buffers())} <= own
    prompt = build_prompt(model, 2, 8, torch.float32)
    ids = prompt.expanded(theirs.config.image_token_id, 576)
    ours = model(input_ids=prompt.input_ids, images=prompt.images).logits
    expected = theirs(input_ids=ids, pixel_values=prompt.images).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert ours.std() > 1e-3


def test_models_are_made_in_their_dtype_without_changing_the_default_dtype():
    model = build_model(SMALL["llama"], "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_decoder().rotary_emb.inv_freq.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


@torch.no_grad()
def test_a_variant_is_the_model_with_its_projector():
    model = build_model(SMALL["llama"], "cpu", torch.float32)
    variants = build_variants(model, ["visualprism", "avgpool"], [2, 4], torch.float32)
    prompt = build_prompt(model, 1, 8, torch.float32)
    positions = []
    for variant in variants:
        variant.put_into(model)
        logits = model(input_ids=prompt.input_ids, images=prompt.images).logits
        positions.append(logits.shape[1] - 8)
        assert variant.num_tokens(model) == model.num_visual_tokens == positions[-1]
    assert positions == [576, 144, 36, 144, 36]
    with pytest.raises(ValueError, match="--projectors.*'linear'"):
        build_variants(model, ["linear"], [2], torch.float32)


def test_sequences_that_fit_are_found_by_trying_and_by_computing():
    for limit in (0, 1, 2, 7, 64, 100):
        assert capacity.largest(lambda batch, limit=limit: batch <= limit) == limit
    # weights 100; peaks: 30 for 1 sequence, 50 for 2, so 20 per sequence plus 10; the answer's cache is 5
    assert capacity.computed(limit=210, weights=100, one=30, two=50, answer=5) == 4
    assert capacity.computed(limit=90, weights=100, one=30, two=50, answer=5) == 0


def test_weights_that_two_parts_share_count_once():
    model = build_model(SMALL["qwen2"], "cpu", torch.float32)
    numbers = {id(p): p.numel() for p in model.parameters()}
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert capacity.weight_bytes(model) == 4 * sum(numbers.values()) + buffers


@pytest.mark.slow
def test_a_run_leaves_json_markdown_and_pictures_and_fills_a_page(small, tmp_path, capsys):
    page = tmp_path / "performance.md"
    page.write_text("<!-- speed_tiny -->\n<!-- end speed_tiny -->\n")
    arguments = "--device cpu --repeats 1 --new_tokens 3 --text_tokens 8 --scale_factors 2 4"
    main(["speed", *arguments.split(), "--output_dir", str(tmp_path), "--docs", str(page)])
    content = json.loads((tmp_path / "speed_tiny.json").read_text())
    about = {"command", "date", "machine", "versions", "dtype", "threads", "shape", "layers", "memory_gib"}
    assert about <= set(content)
    rows = content["rows"]
    assert [(row["name"], row["tokens"]) for row in rows] == [
        ("mlp2x_gelu", 576),
        ("visualprism", 144),
        ("visualprism", 36),
        ("transformers", 576),
    ]
    for row in rows:
        assert set(row["seconds"]) == set(measure.FIGURES)
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert set(row["gflop"]) == set(measure.PARTS)
        assert len(row["rounds"]) == 1
    assert rows[0]["prefill_ratio"] == 1
    assert set(rows[0]["against_theirs"]) == set(measure.FIGURES)
    assert rows[1]["largest_batch"] > rows[0]["largest_batch"] > 0
    text = (tmp_path / "speed_tiny.md").read_text()
    assert text in capsys.readouterr().out
    assert text in page.read_text()
    assert text.count("\n|") == 2 + 4
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"speed_tiny{suffix}").stat().st_size > 1000


@pytest.mark.slow
def test_a_shape_that_fits_nowhere_is_counted_without_memory(tmp_path, capsys):
    main(["speed", "--shape", "7b", "--count_only", "--device", "cpu", "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "count_7b.json").read_text())["rows"]
    assert [row["image_kv_bytes"] / 2**20 for row in rows] == [288, 72, 32, 18]  # half a MiB per token
    full, compressed = (sum(row["gflop"].values()) for row in rows[:2])
    assert compressed / full < 0.35
    assert "counted, not measured" in capsys.readouterr().out


def test_a_truncated_shape_says_so_and_is_extrapolated_by_its_layers():
    from llava.benchmark.speed.report import scaled

    shape = shapes.SHAPES["7b"].truncated(2)
    assert (shape.layers, shape.full_layers) == (2, 32)
    seconds = {"tower": 1.0, "projector": 0.5, "language_model": 2.0}
    parts = scaled({"seconds": seconds}, {"layers": 2, "full_layers": 32})
    assert parts == {"tower": 1.0, "projector": 0.5, "language_model": 32.0}
    with pytest.raises(ValueError, match="--layers.*1 to 32.*--shape 7b.*33"):
        shapes.SHAPES["7b"].truncated(33)


@pytest.mark.slow
def test_a_step_reports_samples_and_their_arithmetic(small, tmp_path):
    arguments = "--device cpu --repeats 1 --batch_size 2 --text_tokens 8 --answer_tokens 4 --scale_factors 4"
    runs = {
        "--stage 1": "step_tiny_stage1",
        "--stage 2": "step_tiny",
        "--lora --gradient_checkpointing": "step_tiny_lora_recompute",
    }
    for flags, name in runs.items():
        main(["step", *arguments.split(), *flags.split(), "--output_dir", str(tmp_path)])
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["peak_flops"] > 0
        assert content["peak_source"].startswith("best of ten products")
        for row in content["rows"]:
            assert row["samples_per_second"] == pytest.approx(2 / row["seconds"])
            work = 1e9 * row["gflop"] / row["seconds"]
            assert row["mfu"] == pytest.approx(work / content["peak_flops"])
        assert (tmp_path / f"{name}.md").read_text().count("\n|") == 2 + 2


def test_a_row_that_is_out_of_memory_has_no_time_and_harms_no_other():
    from llava.benchmark.speed.training import OUT_OF_MEMORY, as_markdown

    about = {"shape": "7b", "layers": 32, "full_layers": 32, "stage": 2, "batch_size": 16, "text_tokens": 40}
    about |= {
        "answer_tokens": 20,
        "lora": True,
        "gradient_checkpointing": False,
        "use_liger_kernel": False,
        "compile_layers": False,
        "compile_vision": False,
    }
    about |= {"time": "wall", "peak_flops": 1e15, "peak_source": "a data sheet", "command": "c", "date": "d"}
    about |= {
        "machine": "GPU",
        "device": "cuda",
        "dtype": "bfloat16",
        "versions": {"torch": "2", "transformers": "5"},
    }
    full = {
        "name": "mlp2x_gelu",
        "scale_factor": None,
        "tokens": 576,
        "gflop": 9.0,
        "peak_gib": OUT_OF_MEMORY,
    }
    row = {**full, "name": "avgpool", "scale_factor": 2, "tokens": 144, "peak_gib": 61.25}
    row |= {"seconds": 0.5, "samples_per_second": 32.0, "mfu": 0.5}
    text = as_markdown([full, row], about)
    assert "| mlp2x_gelu | – | 576 | – | – | – | 9 | – | out of memory |" in text
    assert "| avgpool | 2 | 144 | 500 | – | 32.00 | 9 | 50.0% | 61.2 |" in text
    assert "20 with a label, by LoRA, wall time" in text


def test_a_step_needs_what_torch_counts_of_it():
    """Forward and backward pass of both stages, without the gradient of the projector's input."""
    from types import SimpleNamespace

    from llava.benchmark.speed.training import step_gflop

    shape = SMALL["llama"]
    model = build_model(shape, "cpu", torch.float32)
    variant = build_variants(model, [], [], torch.float32)[0]
    prompt = build_prompt(model, 2, 8, torch.float32)
    labels = prompt.input_ids.clone()
    labels[:, :-4] = -100
    for stage in (1, 2):
        model.requires_grad_(stage == 2)
        model.get_vision_tower().requires_grad_(False)
        variant.projector.requires_grad_(True)
        model.train()

        def step():
            batch = {"input_ids": prompt.input_ids, "labels": labels, "images": prompt.images}
            model(**batch, use_cache=False).loss.backward()

        args = SimpleNamespace(batch_size=2, text_tokens=8, answer_tokens=4, stage=stage, lora=False)
        expected = step_gflop(model, shape, variant, args, 576)
        assert gflop(step) == pytest.approx(expected, rel=0.03)
