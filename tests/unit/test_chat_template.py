"""The Jinja template of a trained folder renders the prompts with which the model was trained."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from llava.chat_template import chat_template
from llava.conversation import SeparatorStyle, conv_templates, place_images

ROLES = ("user", "assistant")
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        ["<image>\nWhat?", " a ", "\n", "{{ x }}", "{% if %}", '"\\', "[words]", "</s>", "###", "None"]
    ),
)
SYSTEM = st.one_of(st.none(), TEXT)
NAMES = list(
    {id(template): name for name, template in conv_templates.items()}.values()
)  # one of each template


@pytest.fixture(scope="module")
def tokenizers(bpe_tokenizer):
    """One tokenizer for each template, with its Jinja template."""
    found = {}
    for name in NAMES:
        found[name] = copy.deepcopy(bpe_tokenizer)
        found[name].chat_template = chat_template(conv_templates[name])
    return found


def styled(style):
    return [name for name in NAMES if conv_templates[name].sep_style is style]


def conversation_of(name, system, texts):
    template = conv_templates[name]
    conversation = template.copy() if system is None else template.with_system(system)
    for index, text in enumerate(texts):
        conversation.append_message(conversation.roles[index % 2], text)
    return conversation


def messages_of(system, texts):
    turns = [{"role": ROLES[index % 2], "content": text} for index, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(system=SYSTEM, texts=st.lists(TEXT, min_size=1, max_size=5))
def test_a_rendered_conversation_is_the_prompt(tokenizers, name, system, texts):
    style = conv_templates[name].sep_style
    if style is SeparatorStyle.PLAIN:
        system, texts = None, texts[:2]
    if style is SeparatorStyle.LLAMA_2:
        texts = [texts[0] or "Hi", *texts[1:]]
    render = tokenizers[name].apply_chat_template
    messages = messages_of(system, texts)
    assert render(messages, tokenize=False) == conversation_of(name, system, texts).get_prompt()
    if len(texts) % 2:
        expected = conversation_of(name, system, [*texts, None]).get_prompt()
        assert render(messages, tokenize=False, add_generation_prompt=True) == expected


@pytest.mark.parametrize("use_im_start_end", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("parts", "text", "num_images"),
    [
        (["image", "What?"], "What?", 1),
        (["What?", "image"], "What?", 1),
        (["image", "image", "Which?", "And why?"], "Which?\nAnd why?", 2),
        (["First <image>, then <image>.", "image", "image"], "First <image>, then <image>.", 2),
        (["image"], "", 1),
        (["What is <image>?"], "What is <image>?", 0),
    ],
)
def test_image_parts_stand_where_place_images_puts_them(
    tokenizers, name, parts, text, num_images, use_im_start_end
):
    template = conv_templates[name]
    tokenizer = copy.copy(tokenizers[name])
    tokenizer.chat_template = chat_template(template, use_im_start_end)
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    placed = place_images(text, num_images, template, use_im_start_end)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == conversation_of(name, None, [placed, None]).get_prompt()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("messages", "asks", "says"),
    [
        ([{"role": "user", "content": "Hi"}] * 2, False, "alternate"),
        ([{"role": "assistant", "content": "Hi"}], False, "alternate"),
        ([{"role": "tool", "content": "Hi"}], False, "alternate"),
        (messages_of(None, ["Hi", "Hello"]), True, "last message.*user"),
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image> <image>"}]}],
            False,
            "one <image>",
        ),
    ],
)
def test_what_the_template_cannot_express_is_refused(tokenizers, name, messages, asks, says):
    with pytest.raises(TemplateError, match=says):
        tokenizers[name].apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)


@pytest.mark.parametrize("name", styled(SeparatorStyle.PLAIN))
@pytest.mark.parametrize("messages", [messages_of("Be short.", ["Hi"]), messages_of(None, ["a", "b", "c"])])
def test_plain_takes_one_image_and_its_caption(tokenizers, name, messages):
    with pytest.raises(TemplateError, match="one image"):
        tokenizers[name].apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("name", styled(SeparatorStyle.LLAMA_2))
def test_llama_2_needs_first_words(tokenizers, name):
    with pytest.raises(TemplateError, match="first message"):
        tokenizers[name].apply_chat_template(messages_of(None, [""]), tokenize=False)
