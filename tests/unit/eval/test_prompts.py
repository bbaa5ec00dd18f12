"""Prompts of many questions: the same ids as one by one; texts are tokenized and images opened once."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava.conversation import conv_templates, template_named
from llava.errors import UserError
from llava.eval.generation import PromptMaker, make_prompt
from llava.mm_utils import encode_prompt, encode_prompts

PIECES = (
    "<image>",
    "<image>\n",
    "A red bus",
    " <s>",
    "<|im_start|>",
    "\n\n",
    "é",
    "<im_end>",
    "<ima",
    "12 dogs",
    "",
)
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=8).map("".join)


class Slow:
    """A tokenizer without positions, with one id for each character."""

    is_fast, bos_token_id = False, 1

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


@pytest.fixture(params=["sentencepiece", "byte-level", "llama 3", "slow"])
def tokenizer(request):
    fixtures = {
        "sentencepiece": "legacy_tokenizer",
        "byte-level": "bpe_tokenizer",
        "llama 3": "llama_3_tokenizer",
    }
    return Slow() if request.param == "slow" else request.getfixturevalue(fixtures[request.param])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(prompts=st.lists(TEXTS, max_size=6))
def test_many_prompts_get_the_ids_of_each_alone(tokenizer, prompts):
    prompts = [*prompts, *prompts[:2]]  # some of them twice
    assert encode_prompts(prompts, tokenizer) == [encode_prompt(prompt, tokenizer)[0] for prompt in prompts]


def world(aspect_ratio="pad", tower="a tower"):
    return SimpleNamespace(
        config=SimpleNamespace(image_aspect_ratio=aspect_ratio),
        get_vision_tower=lambda: tower,
        num_visual_tokens=9,
        visual_positions_of=lambda size: size[0],
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(TEXTS.filter(lambda text: "<image>" not in text), min_size=1, max_size=6),
    name=st.sampled_from([name for name in conv_templates if name != "plain"]),
    lists=st.integers(1, 3),
)
def test_prompts_do_not_depend_on_the_lists_that_questions_come_in(bpe_tokenizer, texts, name, lists):
    questions = [
        {"question_id": i, "text": text or "?", "image": "a.png" if i % 2 else None}
        for i, text in enumerate([*texts, *texts])
    ]
    template = template_named(name)
    make = PromptMaker(world(), bpe_tokenizer, template, Path())
    together = [prompt for i in range(0, len(questions), lists) for prompt in make(questions[i : i + lists])]
    for question, prompt in zip(questions, together, strict=True):
        alone = make_prompt(question, world(), bpe_tokenizer, template, Path())
        assert (prompt.question, list(prompt.input_ids), prompt.length) == (
            question,
            list(alone.input_ids),
            alone.length,
        )


def test_a_text_is_tokenized_once_however_many_questions_ask_it(bpe_tokenizer, monkeypatch):
    asked = Counter()

    class Counting:
        bos_token_id = bpe_tokenizer.bos_token_id

        def __call__(self, text, **options):
            asked.update(text if isinstance(text, list) else [text])
            asked["calls"] += 1
            return bpe_tokenizer(text, **options)

    questions = [
        {"question_id": i, "text": f"Is there a {('cat', 'dog')[i % 2]}?", "image": f"{i}.png"}
        for i in range(100)
    ]
    make = PromptMaker(world(), Counting(), template_named("v1"), Path())
    for start in range(0, 100, 10):
        make(questions[start : start + 10])
    texts = {text: count for text, count in asked.items() if "Is there" in text}
    assert len(texts) == 2
    assert set(texts.values()) == {1}
    assert asked["calls"] <= 2 * 10  # calls for the chunks, and to find out whether a BOS is added


def test_an_image_is_opened_once_however_many_questions_are_about_it(bpe_tokenizer, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    make = PromptMaker(world("slice"), bpe_tokenizer, template_named("v1"), tmp_path)
    question = {"question_id": 0, "text": "?", "image": ["a.png", "a.png"]}
    (first,) = make([question])
    (tmp_path / "a.png").unlink()
    (again,) = make([question])
    assert again.length == first.length == len(first.input_ids) - 2 + 60


def test_what_cannot_be_asked_stands_in_its_place_as_an_error(bpe_tokenizer, tmp_path):
    questions = [
        {"question_id": 0, "text": "good?"},
        {"question_id": 1, "text": "<image><image>", "image": "a.png"},
        {"question_id": 2, "text": "?", "image": "none.png"},
        {"question_id": 3, "text": "good, too?"},
    ]
    made = PromptMaker(world("slice"), bpe_tokenizer, template_named("v1"), tmp_path)(questions)
    assert [isinstance(prompt, UserError) for prompt in made] == [False, True, True, False]
    assert "2 <image> for 1 image" in str(made[1])
    assert "none.png" in str(made[2])
    (refused,) = PromptMaker(world(tower=None), bpe_tokenizer, template_named("v1"), tmp_path)(questions[2:3])
    assert "text-only" in str(refused)
