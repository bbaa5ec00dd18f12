"""Prompts compared with recorded ones, and the calls that evaluators make to a conversation."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Template

from llava.conversation import (
    Conversation,
    Segment,
    SeparatorStyle,
    chat_prompt,
    conv_templates,
    question_prompt,
)

# ChatML in the form of Qwen2 and SmolLM2, always with a system message
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3's published template, without bos_token, which the tokenizer adds
LLAMA_3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHAT_FORMATS = {
    "qwen_2": (CHATML, "You are a helpful assistant."),
    "llava_llama_3": (
        LLAMA_3,
        "You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.",
    ),
}
CHAT_TEMPLATES = [name for name, c in conv_templates.items() if c.sep_style is not SeparatorStyle.PLAIN]


def talk(template: str, *messages) -> Conversation:
    conversation = conv_templates[template].copy()
    for index, message in enumerate(messages):
        conversation.append_message(conversation.roles[index % 2], message)
    return conversation


def test_prompts_are_the_recorded_ones(golden):
    rows = json.loads((golden / "conversation_prompts.json").read_text())
    assert {row["template"] for row in rows} == set(conv_templates) - {"qwen_2", "llava_llama_3"}
    for row in rows:
        conversation = talk(row["template"], *row["messages"])
        if row["prompt"] is None:
            with pytest.raises(ValueError, match="plain.*one image"):
                conversation.get_prompt()
        else:
            assert conversation.get_prompt() == row["prompt"], row["template"]


@pytest.mark.parametrize("template", CHAT_FORMATS)
@pytest.mark.parametrize(
    "messages", [["Hi", None], ["Hi", "Hello!", "Count the dogs.", None], ["Hi", "Hello!"]]
)
def test_a_prompt_is_what_the_chat_template_renders(template, messages):
    source, system = CHAT_FORMATS[template]
    roles = ("user", "assistant")
    turns = [{"role": "system", "content": system}]
    turns += [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages) if text]
    expected = Template(source, keep_trailing_newline=True).render(
        messages=turns, add_generation_prompt=messages[-1] is None
    )
    assert talk(template, *messages).get_prompt() == expected


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_targets_are_what_follows_each_generation_prompt(template):
    first, second = "A red bus.", "Two."
    whole = talk(template, "What?", first, "How many?", second)
    before_first = talk(template, "What?", None).get_prompt()
    before_second = talk(template, "What?", first, "How many?", None).get_prompt()
    prompt, end = whole.get_prompt(), whole.stop_str
    for before, answer in ((before_first, first), (before_second, second)):
        spoken = next(s.text for s in whole.segments() if s.is_target and answer in s.text)
        assert prompt.startswith(before + spoken)
        assert spoken.endswith(end)
        assert spoken.removesuffix(end).strip() == answer
    assert sum(segment.is_target for segment in whole.segments()) == 2


def test_plain_trains_on_the_caption_directly_after_the_image():
    assert talk("plain", "<image>", "A red bus.").segments() == [
        Segment("<image>", False),
        Segment("A red bus.\n", True),
    ]


def test_the_first_message_as_a_tuple_puts_its_image_ahead():
    as_tuple = talk("v1", ("What is <image> this?", object(), "Pad"), None)
    assert as_tuple.get_prompt() == talk("v1", "<image>\nWhat is  this?", None).get_prompt()
    later = talk("v1", "Hi", "Hello!", ("What?", None, "Pad"), None)
    assert later.get_prompt() == talk("v1", "Hi", "Hello!", "What?", None).get_prompt()
    assert "<Image><image></Image>\nWhat?" in talk("v1_mmtag", ("What?", object(), "Pad"), None).get_prompt()


def test_an_empty_answer_is_one_still_to_come():
    assert talk("v1", "Hi", "").get_prompt() == talk("v1", "Hi", None).get_prompt()


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_an_empty_answer_that_was_given_ends_like_any_other(template):
    def prompt(answer):
        return talk(template, "Hi", answer, "Again?", None).get_prompt()

    assert prompt("") == prompt("Hello!").replace("Hello!", "")


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("v0", "Human: Hi###Assistant:"),
        ("v1", "USER: Hi ASSISTANT:"),
        ("llava_llama_2", "[INST] Hi [/INST]"),
        ("mpt", "<|im_start|>system\n<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"),
        ("qwen_2", "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_an_empty_system_text_leaves_its_marks_alone(template, prompt):
    assert question_prompt("Hi", 0, conv_templates[template].with_system("")) == prompt


MARK, LETTERS = "<image>", "(image)"  # of the same length


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("name", {id(conv_templates[name]): name for name in CHAT_TEMPLATES}.values())
def test_marks_are_those_of_the_images_and_every_other_is_letters(name, wrap, data):
    """In system texts, answers and questions without images, <image> is treated like other letters."""
    words = st.lists(st.sampled_from(["a", " ", "\n", "é", MARK]), min_size=1, max_size=5).map("".join)
    system, turns = data.draw(words), []
    for _ in range(data.draw(st.integers(1, 4))):
        question, answer = data.draw(words), data.draw(words)
        turns.append((question, question.count(MARK) * data.draw(st.booleans()), answer))
    turns[-1] = (*turns[-1][:2], None)
    disguised = [
        (
            question if num_images else question.replace(MARK, LETTERS),
            num_images,
            answer and answer.replace(MARK, LETTERS),
        )
        for question, num_images, answer in turns
    ]
    prompt = chat_prompt(turns, conv_templates[name].with_system(system), wrap)
    other = chat_prompt(disguised, conv_templates[name].with_system(system.replace(MARK, LETTERS)), wrap)
    assert prompt.replace(MARK, LETTERS) == other.replace(MARK, LETTERS)
    assert prompt.marks == tuple(match.start() for match in re.finditer(MARK, other))


def test_a_prompt_says_where_its_images_are():
    turns = [("Is <image> a mark?", 0, "No, <image> is letters."), ("And <image>?", 1, None)]
    prompt = chat_prompt(turns, conv_templates["v1"].with_system("An <image> may come."))
    assert prompt == (
        "An <image> may come. USER: Is <image> a mark? ASSISTANT: No, <image> is letters.</s>"
        "USER: And <image>? ASSISTANT:"
    )
    assert prompt.marks == (prompt.rindex("<image>"),)


def test_surrogates_of_a_conversation_are_replaced():
    prompt = chat_prompt([("a\ud800", 0, "b\udc00"), ("c\udfff", 0, None)], conv_templates["v1"])
    assert prompt.endswith("USER: a\ufffd ASSISTANT: b\ufffd</s>USER: c\ufffd ASSISTANT:")


def test_a_question_with_other_marks_than_images_is_refused():
    for text, num_images in (("<image>", 2), ("<image><image>", 1)):
        with pytest.raises(ValueError, match=f"{num_images} image"):
            question_prompt(text, num_images, conv_templates["v1"])


def test_a_copy_leaves_the_template_alone():
    conversation = talk("v1", "Hi", None)
    copy = conversation.copy()
    copy.messages[-1][1] = "Hello!"
    copy.append_message(copy.roles[0], "Bye")
    assert conversation.messages == [["USER", "Hi"], ["ASSISTANT", None]]
    assert conv_templates["v1"].messages == []


def test_turns_out_of_order_are_refused():
    conversation = conv_templates["v1"].copy()
    conversation.append_message(conversation.roles[1], "Hello!")
    with pytest.raises(ValueError, match="0.*'ASSISTANT'.*'USER'"):
        conversation.get_prompt()


def test_llama_2_needs_first_words():
    with pytest.raises(ValueError, match="first message"):
        talk("llama_2", None).get_prompt()


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        ("v0", "###"),
        ("v1", "</s>"),
        ("llama_2", "</s>"),
        ("llava_llama_3", "<|eot_id|>"),
        ("mpt", "<|im_end|>"),
        ("qwen_2", "<|im_end|>"),
    ],
)
def test_stop_text(template, stop):
    assert conv_templates[template].stop_str == stop


@pytest.mark.parametrize("name", sorted(conv_templates))
def test_a_system_text_takes_the_place_of_the_templates_own_within_its_marks(name):
    template = conv_templates[name]
    if template.sep_style is SeparatorStyle.PLAIN:
        with pytest.raises(ValueError, match="system part"):
            template.with_system("Be short.")
        return
    before = template.system
    conversation = template.with_system("Be short.")
    conversation.append_message(conversation.roles[0], "Hello")
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    marks = before[: before.index("\n")] if before.startswith("<|") else ""
    assert prompt.startswith(marks)
    assert prompt.count("Be short.") == 1
    assert template.system == before
    assert not before.startswith("<|") or before.split("\n")[-1] not in prompt
