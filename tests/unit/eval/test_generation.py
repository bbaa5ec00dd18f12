"""Prompts, batches and the ends of answers, without a real model."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, question_prompt, template_named
from llava.decoding import Decoding, Stopping
from llava.eval.generation import Prompt, make_prompt, open_image, split_batches
from llava.mm_utils import left_pad

VOCAB = ["<unk>", "<s>", "</s>", "<|im_end|>", "a", "b", "###", "<pad>"]


@pytest.fixture
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_end|>"],
    )


def stopping(tokenizer, name, eos_token_id=2):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos_token_id))
    return Stopping(model, tokenizer, conv_templates[name])


def test_an_added_end_mark_ends_generation_by_its_id(tokenizer):
    kwargs = stopping(tokenizer, "qwen_2").kwargs()
    assert kwargs == {"eos_token_id": [2, 3], "pad_token_id": 7}


def test_the_end_of_sequence_needs_no_stop_text(tokenizer):
    assert stopping(tokenizer, "vicuna_v1", eos_token_id=[2, 5]).kwargs()["eos_token_id"] == [2, 5]
    assert "stop_strings" not in stopping(tokenizer, "vicuna_v1").kwargs()


def test_an_end_mark_of_ordinary_text_is_watched_for_as_text(tokenizer):
    kwargs = stopping(tokenizer, "v0").kwargs()
    assert kwargs["stop_strings"] == ["###"]
    assert kwargs["eos_token_id"] == [2]


@pytest.mark.parametrize(
    ("name", "ids", "text"),
    [
        ("vicuna_v1", [4, 5, 2, 4], "a b"),
        ("qwen_2", [4, 3, 7, 7], "a"),
        ("v0", [4, 5, 6, 4], "a b"),
        ("vicuna_v1", [2, 4], ""),
    ],
)
def test_an_answer_is_what_stands_before_its_end(tokenizer, name, ids, text):
    assert stopping(tokenizer, name).decode(ids) == text


def test_the_image_comes_first_in_the_question():
    prompt = question_prompt("What?", 1, template_named("vicuna_v1"))
    assert prompt.endswith("USER: <image>\nWhat? ASSISTANT:")
    assert "<image>" not in question_prompt("What?", 0, template_named("vicuna_v1"))


def test_the_image_is_wrapped_where_the_model_was_trained_so():
    prompt = question_prompt("What?", 1, template_named("vicuna_v1"), use_im_start_end=True)
    assert "USER: <im_start><image><im_end>\nWhat?" in prompt


def test_a_text_may_place_its_image_itself_but_not_more_than_there_are():
    assert "Is <image> red?" in question_prompt("Is <image> red?", 1, template_named("v1"))
    with pytest.raises(ValueError, match=r"2 <image> for 1 image"):
        question_prompt("<image><image>", 1, template_named("v1"))


def test_an_unknown_template_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"--conv-mode.*vicuna_v1.*'qwen9'"):
        template_named("qwen9")


def test_building_prompts_leaves_the_template_as_it_was():
    question_prompt("What?", 1, conv_templates["v1"])
    assert conv_templates["v1"].messages == []


def prompts(*lengths):
    return [Prompt({}, [], length) for length in lengths]


def test_batches_fill_the_token_budget_with_prompts_padded_to_the_longest():
    batches = split_batches(prompts(90, 40, 30, 20, 10), None, token_budget=150, max_new_tokens=10)
    assert [[p.length for p in batch] for batch in batches] == [[90], [40, 30, 20], [10]]


def test_a_prompt_beyond_the_budget_is_asked_alone():
    assert [len(batch) for batch in split_batches(prompts(500, 500), None, 100, 10)] == [1, 1]


def test_a_batch_size_overrides_the_budget():
    assert [len(batch) for batch in split_batches(prompts(9, 9, 9), 2, 1, 10)] == [2, 1]


def test_left_pad_aligns_the_ends():
    input_ids, attention_mask = left_pad([[5], [6, 7, 8]], pad_token_id=0)
    assert torch.equal(input_ids, torch.tensor([[0, 0, 5], [6, 7, 8]]))
    assert torch.equal(attention_mask, torch.tensor([[False, False, True], [True, True, True]]))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"num_beams": 0}, {"max_new_tokens": 0}]
)
def test_impossible_decoding_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        Decoding(**wrong)


def tiny_world(aspect_ratio):
    """A stand-in for a model, whose number of tokens depends on the image size, and one for a tokenizer."""
    return SimpleNamespace(
        config=SimpleNamespace(image_aspect_ratio=aspect_ratio),
        get_vision_tower=lambda: object(),
        num_visual_tokens=9,
        visual_positions_of=lambda size: size[0],
    )


@pytest.mark.parametrize(("aspect_ratio", "visual"), [("pad", 3 * 9), ("slice", 30 + 50 + 50)])
def test_a_prompts_length_counts_every_image_as_the_model_takes_it(tokenizer, tmp_path, aspect_ratio, visual):
    for width in (30, 50):
        Image.new("RGB", (width, 20)).save(tmp_path / f"{width}.png")
    images = ["30.png", "50.png", (tmp_path / "50.png").read_bytes()]
    question = {"question_id": 0, "text": "a b", "image": images}
    prompt = make_prompt(question, tiny_world(aspect_ratio), tokenizer, template_named("vicuna_v1"), tmp_path)
    assert prompt.input_ids.count(IMAGE_TOKEN_INDEX) == 3
    assert prompt.length == len(prompt.input_ids) - 3 + visual


@pytest.mark.parametrize("text", ["what is <image> ?", "<image>", "<image><image>"])
def test_what_a_question_without_an_image_says_is_letters(legacy_tokenizer, tmp_path, text):
    template = template_named("vicuna_v1")
    prompt = make_prompt(
        {"question_id": 0, "text": text}, tiny_world("pad"), legacy_tokenizer, template, tmp_path
    )
    assert IMAGE_TOKEN_INDEX not in prompt.input_ids
    assert prompt.length == len(prompt.input_ids)
    whole = f"{template.system} USER: {text} ASSISTANT:"
    assert list(prompt.input_ids) == legacy_tokenizer(whole)["input_ids"]


def test_images_of_a_question_come_from_files_and_from_bytes_and_a_bad_one_is_named(tmp_path):
    Image.new("RGB", (4, 3), "red").save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    assert open_image("a.png", tmp_path).size == open_image(encoded, tmp_path).size == (4, 3)
    with pytest.raises(ValueError, match="benchmark's data.*cannot be read"):
        open_image(encoded[:40], tmp_path)
