"""Images to pixels, prompts to ids, and the small functions that evaluators import."""

import base64
from argparse import Namespace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import MarkedPrompt
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    load_image,
    load_image_from_base64,
    process_images,
    tokenizer_image_token,
)

PROCESSORS = [
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
    BitImageProcessor(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ),
]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("processor", PROCESSORS, ids=["clip", "bit"])
@pytest.mark.parametrize("config", [Namespace(image_aspect_ratio="square"), Namespace(), None])
def test_square_is_the_processor_itself(processor, config):
    images = [picture(40, 30), picture(30, 50)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(process_images(images, processor, config), expected)


@pytest.mark.parametrize("processor", PROCESSORS, ids=["clip", "bit"])
@pytest.mark.parametrize(("width", "height"), [(40, 31), (31, 40), (28, 28), (1, 50)])
def test_pad_is_a_square_of_the_mean_colour(processor, width, height):
    image = picture(width, height)
    side = max(width, height)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [int(255 * mean) for mean in processor.image_mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(image)
    expected = processor(images=Image.fromarray(square), return_tensors="pt")["pixel_values"]
    assert torch.equal(process_images([image], processor, Namespace(image_aspect_ratio="pad")), expected)


def test_images_of_other_modes_become_rgb():
    image = picture(30, 30, "L")
    config = Namespace(image_aspect_ratio="pad")
    assert process_images([image], PROCESSORS[0], config).shape == (1, 3, 28, 28)


def test_pixels_of_different_sizes_come_as_a_list():
    keeps_ratio = CLIPImageProcessor(size={"shortest_edge": 28}, do_center_crop=False)
    pixels = process_images([picture(28, 28), picture(56, 28)], keeps_ratio, None)
    assert [p.shape for p in pixels] == [(3, 28, 28), (3, 28, 56)]


def test_an_unknown_aspect_ratio_is_refused_by_name():
    with pytest.raises(ValueError, match="square, pad, slice, anyres.*'wide'"):
        process_images([picture(9, 9)], PROCESSORS[0], Namespace(image_aspect_ratio="wide"))


def test_expand2square_leaves_a_square_alone():
    image = picture(9, 9)
    assert expand2square(image, (0, 0, 0)) is image


def test_load_image_reads_rgb(tmp_path):
    picture(8, 6, "L").save(tmp_path / "grey.png")
    image = load_image(tmp_path / "grey.png")
    assert (image.mode, image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_load_image_names_a_file_that_is_cut_short(tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    picture(64, 64).save(path)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cut.{suffix}.*cannot be read"):
        load_image(cut)


def test_load_image_names_a_missing_file_and_one_that_is_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"none.png.*does not exist.*--image_folder"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text.png.*cannot be read"):
        load_image(tmp_path / "text.png")


def test_load_image_from_base64():
    buffer = BytesIO()
    picture(8, 6).save(buffer, "PNG")
    image = load_image_from_base64(base64.b64encode(buffer.getvalue()).decode())
    assert np.array_equal(np.asarray(image), np.asarray(picture(8, 6)))


def test_sentencepiece_prompt_keeps_one_bos(sentencepiece_tokenizer):
    ids = tokenizer_image_token("Look: <image>\nWhat?<image>", sentencepiece_tokenizer)
    chunks = ["Look: ", "\nWhat?"]
    first, second = (sentencepiece_tokenizer(c, add_special_tokens=False).input_ids for c in chunks)
    bos = sentencepiece_tokenizer.bos_token_id
    assert ids == [bos, *first, IMAGE_TOKEN_INDEX, *second, IMAGE_TOKEN_INDEX]
    assert tokenizer_image_token("<s>Look", sentencepiece_tokenizer).count(bos) == 1


def test_a_mark_that_happens_to_be_the_bos_costs_no_chunk_its_first_token(bpe_tokenizer):
    prompt = "<|im_start|>user\n<image>\nWhat?"
    ids = tokenizer_image_token(prompt, bpe_tokenizer)
    at = ids.index(IMAGE_TOKEN_INDEX)
    assert bpe_tokenizer.decode(ids[:at]) + "<image>" + bpe_tokenizer.decode(ids[at + 1 :]) == prompt


@pytest.mark.parametrize("kind", ["legacy_tokenizer", "bpe_tokenizer", "llama_3_tokenizer"])
def test_only_the_marks_of_a_marked_prompt_are_images_and_the_rest_is_tokenised_as_letters(kind, request):
    tokenizer = request.getfixturevalue(kind)
    text = "An <image> or <image>\nWhat is <image>?"
    at = text.index("<image>\n")
    ids = tokenizer_image_token(MarkedPrompt(text, [at]), tokenizer)
    chunks = [tokenizer(c, add_special_tokens=False).input_ids for c in (text[:at], text[at + 7 :])]
    with_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    assert ids == [tokenizer.bos_token_id] * with_bos + chunks[0] + [IMAGE_TOKEN_INDEX] + chunks[1]
    assert IMAGE_TOKEN_INDEX not in tokenizer_image_token(MarkedPrompt(text, []), tokenizer)
    assert (
        tokenizer_image_token(text, tokenizer).count(IMAGE_TOKEN_INDEX) == 3
    )  # the string contains no information about images


def test_return_tensors(bpe_tokenizer):
    ids = tokenizer_image_token("A <image>", bpe_tokenizer, image_token_index=-7, return_tensors="pt")
    assert ids.dtype == torch.long
    assert ids[-1] == -7
    with pytest.raises(ValueError, match="got 'np'"):
        tokenizer_image_token("A", bpe_tokenizer, return_tensors="np")


def test_a_slow_tokenizer_is_enough_for_a_prompt():
    def characters(text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    slow = SimpleNamespace(bos_token_id=1, is_fast=False)
    slow = type("Slow", (SimpleNamespace,), {"__call__": staticmethod(characters)})(**vars(slow))
    assert tokenizer_image_token("ab<image>c", slow) == [1, ord("a"), ord("b"), IMAGE_TOKEN_INDEX, ord("c")]


@pytest.mark.parametrize(
    ("path", "name"),
    [("runs/llava-7b/", "llava-7b"), ("runs/llava-7b/checkpoint-50", "llava-7b_checkpoint-50"), ("a", "a")],
)
def test_model_name(path, name):
    assert get_model_name_from_path(path) == name


@pytest.mark.parametrize("with_prompt", [True, False])
def test_keywords_stop_the_rows_that_said_them(bpe_tokenizer, with_prompt):
    prompt = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6]] * 2)
    stop = KeywordsStoppingCriteria(["###"], bpe_tokenizer, prompt)
    answers = ["A red bus.###", "A red bus.##!"]
    rows = [bpe_tokenizer(answer).input_ids for answer in answers]
    length = min(map(len, rows))
    rows = torch.tensor([row[-length:] for row in rows])
    output = torch.cat([prompt, rows], dim=1) if with_prompt else rows
    assert stop(output, None).tolist() == [True, False]


def test_a_keyword_in_the_prompt_stops_nothing(bpe_tokenizer):
    prompt = bpe_tokenizer("Human: ###", return_tensors="pt").input_ids
    stop = KeywordsStoppingCriteria(["###"], bpe_tokenizer, prompt)
    new = bpe_tokenizer("A", return_tensors="pt").input_ids
    assert stop(torch.cat([prompt, new], dim=1)).tolist() == [False]
