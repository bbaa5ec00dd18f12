"""Tiles on tiny models: training, saving, loading, answers in batches and one by one, and heatmaps."""

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import NEWLINE, load_projector, read_projector
from llava.published.answering import LOADER
from llava.train.train import train
from llava.visualization.answer import image_attention
from llava.visualization.plots import paint_tokens

SIZES = [(120, 60), (40, 30), (50, 170), (100, 100), (300, 20)]
SLICE = {"image_aspect_ratio": "slice"}
ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
KINDS = [SLICE, ANYRES, {**ANYRES, "mm_patch_merge_type": "spatial"}, {"image_aspect_ratio": "anyres"}]


def kind_name(settings):
    return "-".join(settings.values())


def pictures():
    noise = np.random.default_rng(0)
    return [
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES
    ]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, bpe_tokenizer):
    folder = tmp_path_factory.mktemp("parts")
    tiny.save_language_model(folder / "language_model")
    bpe_tokenizer.save_pretrained(folder / "language_model")
    tiny.save_tower(folder / "tower")
    captions, conversations = [], []
    for index, picture in enumerate(pictures()):
        picture.save(folder / f"{index}.png")
        answer = {"from": "gpt", "value": f"picture {index}"}
        record = {"id": str(index), "image": f"{index}.png"}
        captions.append({**record, "conversations": [{"from": "human", "value": "<image>"}, answer]})
        question = {"from": "human", "value": "<image>\nWhich?"}
        conversations.append({**record, "conversations": [question, answer]})
    words = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    conversations += [{"id": f"text{i}", "conversations": words} for i in range(3)]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "conversations.json").write_text(json.dumps(conversations))
    return folder


def run(parts, output_dir, data, **changes):
    values = {
        "model_name_or_path": parts / "language_model",
        "vision_tower": parts / "tower",
        "data_path": parts / data,
        "image_folder": parts,
        "output_dir": output_dir,
        "mm_projector_type": "visualprism",
        "version": "qwen_2",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        **changes,
    }
    train([item for name, value in values.items() for item in (f"--{name}", str(value))])


def answer(model, tokenizer, processor, questions):
    """Scores of each new token for a batch of (words, image): float[B, new, vocabulary]."""
    rows = [torch.tensor([*tokenizer(words).input_ids, IMAGE_TOKEN_INDEX, 7]) for words, _ in questions]
    pad = {"batch_first": True, "padding_side": "left"}
    images = [image for _, image in questions]
    output = model.generate(
        torch.nn.utils.rnn.pad_sequence(rows, **pad),
        attention_mask=torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], **pad).bool(),
        images=process_images(images, processor, model.config),
        image_sizes=[image.size for image in images],
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return torch.stack(output.scores, dim=1)


@pytest.mark.parametrize("settings", [SLICE, ANYRES], ids=kind_name)
def test_both_stages_train_on_tiles_and_the_result_answers_in_batches_as_alone(parts, tmp_path, settings):
    run(parts, tmp_path / "1", "captions.json", version="plain", tune_mm_mlp_adapter=True, **settings)
    adapter = tmp_path / "1" / "mm_projector.bin"
    run(parts, tmp_path / "2", "conversations.json", pretrain_mm_mlp_adapter=adapter, **settings)
    tokenizer, model, processor, _ = load_pretrained_model(str(tmp_path / "2"))
    assert model.tiling.num_tiles(SIZES[0]) > 1
    stage1 = read_projector(adapter)
    final = load_file(tmp_path / "2" / "model.safetensors")
    assert (NEWLINE in stage1) == (f"model.{NEWLINE}" in final) == (settings is ANYRES)
    if settings is ANYRES:
        assert not torch.equal(stage1[NEWLINE], final[f"model.{NEWLINE}"])
    questions = [("Look" * n, picture) for n, picture in enumerate(pictures())]
    together = answer(model, tokenizer, processor, questions)
    alone = [answer(model, tokenizer, processor, [question]) for question in questions]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3  # another image would change the result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**SLICE, "patch_num": 10}, "--patch_num must be one of 9, 16, 25, got 10"),
        ({**ANYRES, "image_grid_pinpoints": "[[100, 56]]"}, "multiples of the tower's 56 pixels"),
        ({**ANYRES, "mm_projector_type": "visionzip", "num_visual_tokens": 4}, "grid of the image"),
    ],
)
def test_what_cannot_be_tiled_ends_the_run_before_it_starts(parts, tmp_path, changes, message):
    with pytest.raises(SystemExit) as stop:
        run(parts, tmp_path / "out", "conversations.json", **changes)
    assert message in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_stage_1s_folder_brings_its_newline(parts, tmp_path):
    run(parts, tmp_path / "1", "captions.json", version="plain", tune_mm_mlp_adapter=True, **ANYRES)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "1"), str(parts / "language_model"))
    state = read_projector(tmp_path / "1" / "mm_projector.bin")
    assert torch.equal(model.model.image_newline, state[NEWLINE])


@pytest.fixture(scope="module", params=KINDS, ids=kind_name)
def model(request, tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiles"), slice_separator_ids=[11, 12], **request.param)


@pytest.mark.parametrize("scale_factor", [None, 1, 4])
@torch.no_grad()
def test_an_image_takes_the_positions_foretold_at_any_compression(model, scale_factor):
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    calls = []
    handle = model.get_vision_tower().register_forward_hook(lambda *call: calls.append(call))
    images = pictures()
    merged = model.merge_inputs(
        torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]] * len(images)),
        images=process_images(images, processor, model.config),
        image_sizes=SIZES,
        scale_factor=scale_factor,
    )
    handle.remove()
    assert len(calls) == 1  # all tiles of the batch are encoded at once
    expected = [2 + model.visual_positions_of(size, scale_factor) for size in SIZES]
    assert merged.attention_mask.sum(dim=1).tolist() == expected


@torch.no_grad()
def test_separators_stand_between_the_tiles(tmp_path):
    model = tiny.build(tmp_path, slice_separator_ids=[11, 12], **SLICE)
    tiles, size = torch.randn(3, 3, 56, 56), (112, 56)
    features = model.encode_images(tiles)
    comma, newline = model.get_input_embeddings()(torch.tensor([11, 12]))
    merged = model.merge_inputs(
        torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]]), images=[tiles], image_sizes=[size]
    ).inputs_embeds[0]
    expected = [features[0], comma[None], features[1], newline[None], features[2], newline[None]]
    torch.testing.assert_close(merged[1:-1], torch.cat(expected))
    with pytest.raises(ValueError, match="image_sizes is missing"):
        model.merge_inputs(torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]]), images=[tiles])
    with pytest.raises(ValueError, match="1 images.*2 image_sizes"):
        model.merge_inputs(torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]]), images=[tiles], image_sizes=[size] * 2)
    model.config.slice_separator_ids = None
    with pytest.raises(ValueError, match="slice_separator_ids"):
        model.merge_inputs(torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]]), images=[tiles], image_sizes=[size])


def test_tokens_that_are_no_grid_cannot_be_joined(tmp_path):
    model = tiny.build(tmp_path, mm_projector_type="visionzip", num_visual_tokens=4, **ANYRES)
    with pytest.raises(ValueError, match="form a grid.*visualprism"):
        model.visual_positions_of((120, 60))


def test_a_newline_that_would_not_be_used_is_refused_and_a_missing_one_is_learnt(tmp_path):
    with_newline = tiny.build(tmp_path / "a", **ANYRES)
    without = tiny.build(tmp_path / "b")
    state = with_newline.get_projector().state_dict()
    initial = with_newline.model.image_newline.clone()
    load_projector(with_newline, state, "stage1")
    assert torch.equal(with_newline.model.image_newline, initial)
    without.config.update(ANYRES)
    with pytest.raises(ValueError, match="spatial_unpad.*image_newline"):
        without.merge_inputs(torch.tensor([[IMAGE_TOKEN_INDEX]]), images=torch.zeros(1, 3, 56, 56))
    without.config.update({"image_aspect_ratio": "square", "mm_patch_merge_type": "flat"})
    with pytest.raises(ValueError, match="--mm_patch_merge_type spatial_unpad"):
        load_projector(without, {**state, NEWLINE: initial}, "stage1")
    with pytest.raises(ValueError, match=r"image_newline.*\[3\].*\[32\]"):
        load_projector(with_newline, {**state, NEWLINE: torch.zeros(3)}, "stage1")


def test_a_newline_that_a_checkpoint_lacks_is_initialised(tmp_path):
    model = tiny.build(tmp_path, **ANYRES)
    loaded = type(model).from_pretrained(tmp_path / "language_model", config=model.config)
    newline = loaded.model.image_newline
    assert not torch.equal(newline, model.model.image_newline)
    assert 0.5 < newline.std() * model.config.hidden_size**0.5 < 2


@pytest.mark.parametrize("settings", KINDS, ids=kind_name)
def test_evaluation_answers_do_not_depend_on_the_batch(tmp_path, settings):
    tiny.save_llava(tmp_path / "model", **settings)
    rows = []
    for index, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{index}.png")
        rows.append({"question_id": index, "image": f"{index}.png", "text": "what?" * (1 + index)})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ask(name, batch_size):
        paths = {
            "model-path": tmp_path / "model",
            "image-folder": tmp_path,
            "question-file": tmp_path / "questions.jsonl",
            "answers-file": tmp_path / name,
            "max_new_tokens": 6,
            "batch_size": batch_size,
        }
        assert LOADER.main([item for k, v in paths.items() for item in (f"--{k}", str(v))]) == 0
        return (tmp_path / name).read_bytes()

    together = ask("together.jsonl", 5)
    assert ask("alone.jsonl", 1) == together
    assert len({json.loads(line)["text"] for line in together.splitlines()}) > 1


@pytest.mark.parametrize("settings", KINDS, ids=kind_name)
@pytest.mark.parametrize("size", [(180, 90), (70, 150)])
def test_what_is_white_in_a_tokens_box_alone_lights_that_token(tmp_path, settings, size):
    tiny.save_llava(tmp_path / "model", **settings)
    tokenizer, model, processor, _ = load_pretrained_model(str(tmp_path / "model"))
    processor.image_mean, processor.image_std = [0.0] * 3, [1.0] * 3
    shown = image_attention(
        model, tokenizer, processor, Image.new("RGB", size), "where?", layers=[0], max_new_tokens=2
    )
    boxes = shown.mapping.boxes()
    assert shown.weights.shape[-1] == len(boxes)
    order = shown.mapping.order
    view = order // 9
    for token, (left, top, right, bottom) in enumerate(np.rint(boxes).astype(int)):
        if (right - left) * (bottom - top) < 40:
            continue  # a narrow strip beside the padding, which interpolation blurs
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        (tiles,) = process_images([Image.fromarray(pixels)], processor, model.config)
        bright = (
            torch.nn.functional.avg_pool2d(tiles[:, 0], 2 * tiny.LLAVA_PATCH_SIZE).flatten().numpy()[order]
        )
        assert np.where(view == view[token], bright, 0).argmax() == token
        lit = paint_tokens(np.eye(len(boxes))[token], shown.mapping) > 0.5
        assert lit[top + 1 : bottom - 1, left + 1 : right - 1].all()
        lit[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = False
        assert not lit.any()
