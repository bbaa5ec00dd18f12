"""Heatmaps on tiny models: known attention lights the right pixels; other attention is reported unchanged."""

import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from messages import assert_names
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.visualization.answer import image_attention
from llava.visualization.attention import attention_to_image
from llava.visualization.heatmap import main, write_heatmaps
from llava.visualization.plots import paint_tokens

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("heatmap") / "model")


def load(folder):
    return load_pretrained_model(str(folder))[:3]


def photograph(width=90, height=60):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_weights_are_the_rows_that_predict_the_answer_in_image_order(folder):
    _, model, image_processor = load(folder)
    images = process_images([photograph()], image_processor, model.config)
    prompt, answer = [7, 8, IMAGE_TOKEN_INDEX, 9, 10, 11], [20, 21, 22]
    weights = attention_to_image(
        model, torch.tensor([prompt + answer]), len(answer), images, [(90, 60)], [0, 2]
    )
    assert weights.shape == (2, 3, 9)
    model.set_attn_implementation("eager")
    embeds = model.merge_inputs(torch.tensor([prompt + answer]), images=images).inputs_embeds
    with torch.no_grad():
        attentions = model.get_decoder()(inputs_embeds=embeds, output_attentions=True).attentions
    # 2 words, 9 visual tokens at 2..10, 3 words to position 13, which predicts the answer's first token
    for row, layer in enumerate([0, 2]):
        torch.testing.assert_close(weights[row], attentions[layer][0].mean(dim=0)[13:16, 2:11])


def test_the_model_answers_as_before_and_keeps_its_attention(folder):
    tokenizer, model, image_processor = load(folder)
    tower = model.get_vision_tower().vision_tower
    tower.config._attn_implementation = "sdpa"
    before = model.config._attn_implementation
    run = {"layers": [-1], "max_new_tokens": 6}
    first = image_attention(model, tokenizer, image_processor, photograph(), "what?", **run)
    assert (model.config._attn_implementation, tower.config._attn_implementation) == (before, "sdpa")
    assert not any(module._forward_hooks for module in model.modules())
    second = image_attention(model, tokenizer, image_processor, photograph(), "what?", **run)
    assert first.answer == second.answer
    assert np.array_equal(first.weights, second.weights)


@pytest.fixture
def looking_at_white(folder):
    tokenizer, model, image_processor = load(folder)
    tiny.look_at_white(model, tokenizer)

    def encode_images(images, scale_factor=None):
        grey = images.mean(dim=1, keepdim=True)
        region = torch.nn.functional.avg_pool2d(grey, 2 * tiny.LLAVA_PATCH_SIZE).flatten(1)
        return tiny.colour_tokens(region > region.mean())

    model.encode_images = encode_images
    return tokenizer, model, image_processor


# 180x90 pixels. square: 96x48, the middle 48 columns stay, image columns 45 to 135, 3x3 tokens of 30 pixels.
# pad: 180x180 with 45 rows above and below, tokens of 60 pixels.
@pytest.mark.parametrize(
    ("aspect_ratio", "token", "box"),
    [
        ("square", 5, (105, 30, 135, 60)),
        ("square", 6, (45, 60, 75, 90)),
        ("pad", 4, (60, 15, 120, 75)),
        ("pad", 8, (120, 75, 180, 90)),
    ],
)
def test_a_model_that_looks_at_one_region_lights_its_pixels_and_no_other(
    looking_at_white, aspect_ratio, token, box
):
    tokenizer, model, image_processor = looking_at_white
    model.config.image_aspect_ratio = aspect_ratio
    image_processor.image_mean = [0.0] * 3  # padding is black then
    left, top, right, bottom = box
    pixels = np.zeros((90, 180, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    result = image_attention(
        model, tokenizer, image_processor, Image.fromarray(pixels), "where?", layers=[0, 2], max_new_tokens=4
    )
    assert result.answer == "aaaa"
    assert result.words == ["aaaa"]
    for layer in (0, 2):
        weights = result.word_weights(layer)[0]
        assert weights.argmax() == token
        assert weights[token] > 0.99
        lit = np.nan_to_num(paint_tokens(weights, result.mapping)) > 0.5
        assert np.array_equal(lit, pixels[..., 0] > 0)


def test_files_hold_the_picture_and_the_numbers(folder, tmp_path):
    tokenizer, model, image_processor = load(folder)
    image = photograph()
    result = image_attention(
        model, tokenizer, image_processor, image, "what?", layers=[0, -1], max_new_tokens=6
    )
    paths = write_heatmaps(result, image, "what?", tmp_path / "out")
    names = [
        "heatmap_layer0.png",
        "heatmap_layer0.svg",
        "heatmap_layer2.png",
        "heatmap_layer2.svg",
        "heatmap.npz",
    ]
    assert [path.name for path in paths] == names
    arrays = np.load(tmp_path / "out" / "heatmap.npz")
    assert np.array_equal(arrays["weights"], result.weights)
    assert list(arrays["layers"]) == [0, 2]
    assert list(arrays["words"]) == result.words
    assert arrays["word_of_token"].max() == len(result.words) - 1
    assert arrays["boxes"].shape == (9, 4)


@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_other_methods_are_drawn_and_kept_as_they_are(folder, tmp_path, method):
    photograph().save(tmp_path / "photo.png")
    argv = ["--model_path", str(folder), "--image_path", str(tmp_path / "photo.png"), "--text", "what?"]
    argv += ["--output_dir", str(tmp_path / "out"), "--max_new_tokens", "4", "--layers", "-1"]
    assert main([*argv, "--method", method]) == 0
    arrays = np.load(tmp_path / "out" / "heatmap.npz")
    assert arrays["method"] == method
    tokenizer, model, image_processor = load(folder)
    ask = (model, tokenizer, image_processor, photograph(), "what?")
    result = image_attention(*ask, layers=[-1], max_new_tokens=4, method=method)
    np.testing.assert_allclose(arrays["weights"], result.weights, rtol=1e-4)
    plain = image_attention(*ask, layers=[-1], max_new_tokens=4)
    assert plain.answer == result.answer
    assert np.abs(plain.weights - result.weights).max() > 1e-3
    assert (tmp_path / "out" / "heatmap_layer2.png").is_file()


def test_the_shell_passes_its_variables_and_flags_on(folder, tmp_path, capsys):
    photograph().save(tmp_path / "photo.png")
    says_what_it_is_given = tmp_path / "python"
    says_what_it_is_given.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    says_what_it_is_given.chmod(0o755)
    variables = {
        "MODEL_PATH": folder,
        "IMAGE_PATH": tmp_path / "photo.png",
        "OUTPUT_DIR": tmp_path / "out",
        "TEXT": "what colour?",
        "LAYERS": "-1,0",
        "PYTHON": says_what_it_is_given,
    }
    command = ["env", *(f"{k}={v}" for k, v in variables.items()), "bash", "scripts/heatmap.sh"]
    run = subprocess.run([*command, "--max_new_tokens", "5"], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    run_module, module, *argv = run.stdout.splitlines()
    assert (run_module, module) == ("-m", "llava.visualization.heatmap")
    assert main(argv) == 0
    assert "question: what colour?" in capsys.readouterr().out
    assert (tmp_path / "out" / "heatmap_layer2.png").is_file()


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("--layers", "0,3", ("layer 3", "0 to 2")),
        ("--head", "4", ("heads", "0 to 3")),
        ("--method", "saliency", ("--method", "attention, rollout, relevance", "'saliency'")),
        ("--conv_mode", "none", ("--conv-mode", "none", "vicuna_v1")),
        ("--image_path", "nowhere.png", ("nowhere.png", "not exist")),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(folder, tmp_path, capsys, flag, value, parts):
    photograph().save(tmp_path / "photo.png")
    argv = ["--model_path", str(folder), "--image_path", str(tmp_path / "photo.png"), "--text", "what?"]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), flag, value]) == 1
    assert_names(capsys.readouterr().err, *parts)
    assert not (tmp_path / "out").exists()


def test_visual_tokens_that_are_no_grid_are_refused(folder):
    tokenizer, model, image_processor = load(folder)
    model.tokens_per_image = lambda scale_factor=None: 37
    with pytest.raises(ValueError, match="37.*3x3.*--mm_vision_select_feature"):
        image_attention(model, tokenizer, image_processor, photograph(), "what?", layers=[0])
    text_only = Namespace(
        config=model.config, get_vision_tower=lambda: None, get_projector=lambda: None, num_visual_tokens=0
    )
    with pytest.raises(ValueError, match="text-only"):
        image_attention(text_only, tokenizer, image_processor, photograph(), "what?", layers=[0])
