"""Attention over the whole sequence on tiny models: it equals transformers' own, with the right spans."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from messages import assert_names
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.visualization.answer import answer, ask, merged_with
from llava.visualization.distribution import main
from llava.visualization.sequence import sequence_attention, span_bounds

REPOSITORY = Path(__file__).parents[2]
LAYOUTS = [
    {"image_aspect_ratio": "square"},
    {"image_aspect_ratio": "slice"},
    {"image_aspect_ratio": "anyres"},
]
WITH_NEWLINE = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}


def photograph(width=90, height=40):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("distribution") / "model")


@pytest.mark.parametrize(
    "settings", [*LAYOUTS, WITH_NEWLINE], ids=lambda settings: "-".join(settings.values())
)
def test_weights_entropy_and_shares_are_those_of_transformers_own_attention(tmp_path, settings):
    folder = tiny.save_llava(tmp_path / "model", **settings)
    tokenizer, model, image_processor, _ = load_pretrained_model(str(folder))
    image = photograph()
    result = sequence_attention(
        model, tokenizer, image_processor, image, "what colour?", layers=[0, -1], max_new_tokens=5
    )
    (system, _), (start, stop), (_, end), (first, last) = result.bounds.tolist()
    assert (system, stop - start) == (0, model.visual_positions_of(image.size))
    assert (first, last - first) == (end, len(result.tokens) - 1)

    # The prompt and the answer once more, with transformers' own attention
    model.set_attn_implementation("eager")
    question = ask(model, tokenizer, image_processor, image, "what colour?")
    said = answer(model, tokenizer, question, max_new_tokens=5)
    assert said.text == result.answer
    merged = merged_with(model, question, said)
    with torch.no_grad():
        decoder = model.get_decoder()
        attentions = decoder(inputs_embeds=merged.inputs_embeds, output_attentions=True).attentions
    for row, layer in enumerate([0, 2]):
        heads = attentions[layer][0][:, end - 1 : last].numpy()  # [heads, A, T]
        np.testing.assert_allclose(result.weights[row], heads.mean(axis=0)[:, :-1], atol=1e-6)
        bits = -(heads * np.log2(np.maximum(heads, 1e-30))).sum(axis=-1).mean(axis=0)
        np.testing.assert_allclose(result.entropy[row], bits, atol=1e-4)
        np.testing.assert_allclose(
            result.shares()[row, :, 1], heads.mean(axis=0)[:, start:stop].sum(axis=-1), atol=1e-5
        )
    np.testing.assert_allclose(result.shares().sum(axis=-1), 1, atol=1e-5)


def test_spans_follow_one_another_without_the_last_position():
    ids = [1, 2, IMAGE_TOKEN_INDEX, 3, 4, 5, 20, 21]
    # 2 words, 9 positions of the image, 3 words, the first of 2 answer tokens
    assert span_bounds(ids, 16, 2).tolist() == [[0, 2], [2, 11], [11, 14], [14, 15]]
    assert span_bounds([IMAGE_TOKEN_INDEX, 3, 20], 4, 1).tolist() == [[0, 0], [0, 2], [2, 3], [3, 3]]


def test_one_heads_entropy_is_its_own(folder):
    tokenizer, model, image_processor, _ = load_pretrained_model(str(folder))
    ask = (model, tokenizer, image_processor, photograph(), "what?")
    each = [sequence_attention(*ask, head=head, max_new_tokens=3) for head in range(4)]
    mean = sequence_attention(*ask, max_new_tokens=3)
    assert mean.layers == [0, 1, 2]
    np.testing.assert_allclose(mean.entropy, np.mean([one.entropy for one in each], axis=0), atol=1e-5)
    own = -(each[0].weights * np.log2(np.maximum(each[0].weights, 1e-30))).sum(axis=-1)
    np.testing.assert_allclose(each[0].entropy, own, atol=1e-4)


def test_the_shell_passes_its_variables_and_flags_on(folder, tmp_path, capsys):
    photograph().save(tmp_path / "photo.png")
    says_what_it_is_given = tmp_path / "python"
    says_what_it_is_given.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    says_what_it_is_given.chmod(0o755)
    variables = {
        "MODEL_PATH": folder,
        "IMAGE_PATH": tmp_path / "photo.png",
        "OUTPUT_DIR": tmp_path / "out",
        "TEXT": "what $colour$?",
        "LAYERS": "-1,0",
        "PYTHON": says_what_it_is_given,
    }
    command = ["env", *(f"{k}={v}" for k, v in variables.items()), "bash", "scripts/visualization.sh"]
    run = subprocess.run([*command, "--max_new_tokens", "5"], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    run_module, module, *argv = run.stdout.splitlines()
    assert (run_module, module) == ("-m", "llava.visualization.distribution")
    assert main(argv) == 0
    assert "question: what $colour$?" in capsys.readouterr().out
    names = ["distribution.npz", "distribution.png", "distribution.svg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    arrays = np.load(tmp_path / "out" / "distribution.npz")
    assert list(arrays["layers"]) == [2, 0]
    assert arrays["shares"].shape == (2, len(arrays["tokens"]), 4)
    assert list(arrays["spans"]) == ["system", "image", "question", "answer"]


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("--layers", "0,3", ("layer 3", "0 to 2")),
        ("--head", "4", ("heads", "0 to 3")),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(folder, tmp_path, capsys, flag, value, parts):
    photograph().save(tmp_path / "photo.png")
    argv = ["--model_path", str(folder), "--image_path", str(tmp_path / "photo.png"), "--text", "what?"]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), flag, value]) == 1
    assert_names(capsys.readouterr().err, *parts)
    assert not (tmp_path / "out").exists()
