"""Ids equal what inference feeds, and the loss falls on the assistant's words alone: every template and tokenizer."""

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.data.targets import build_targets, conversation_from_record
from llava.mm_utils import tokenizer_image_token

CHAT_TEMPLATES = [name for name, c in conv_templates.items() if c.sep_style is not SeparatorStyle.PLAIN]
# spaces, line ends and pieces of the templates' own marks, which is where tokens could run across
words = st.lists(
    st.sampled_from(["A", "red", "bus", ".", ",", "12", " ", "  ", "\n", "#", "é", "中", "😀", "<", "▁", "\t"])
    | st.text(st.characters(codec="utf-8", exclude_characters="<|"), max_size=3),
    min_size=1,
    max_size=8,
).map("".join)
said = words.filter(str.strip)
stripped = said.map(str.strip)


def talk(template, messages):
    conversation = conv_templates[template].copy()
    for index, message in enumerate(messages):
        conversation.append_message(conversation.roles[index % 2], message)
    return conversation


def runs(labels):
    """Each unbroken run of target ids."""
    found, previous = [], IGNORE_INDEX
    for label in labels:
        if label != IGNORE_INDEX:
            found = [*found, [label]] if previous == IGNORE_INDEX else [*found[:-1], [*found[-1], label]]
        previous = label
    return found


def says(tokenizer, ids) -> str:
    """The text of ids in the middle of a prompt: a leading space, which decoding drops, is kept."""
    anchor = tokenizer("x", add_special_tokens=False).input_ids
    return tokenizer.decode([*anchor, *ids], clean_up_tokenization_spaces=False).removeprefix("x")


def check_training_matches_inference(template, tokenizer, messages):
    ids, labels = build_targets(talk(template, messages), tokenizer)
    generation = tokenizer_image_token(talk(template, [*messages[:-1], None]).get_prompt(), tokenizer)
    assert ids[: len(generation)] == generation
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    segments = [segment.text for segment in talk(template, messages).segments() if segment.is_target]
    assert [says(tokenizer, run) for run in runs(labels)] == segments


any_messages = given(question=said, first=stripped, again=said, last=said)
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@few
@any_messages
def test_training_matches_inference_in_sentencepiece(
    template, sentencepiece_tokenizer, question, first, again, last
):
    messages = [f"<image>\n{question}", first, again, last]
    check_training_matches_inference(template, sentencepiece_tokenizer, messages)


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@few
@any_messages
def test_training_matches_inference_in_byte_level_bpe(template, bpe_tokenizer, question, first, again, last):
    messages = [f"<image>\n{question}", first, again, last]
    check_training_matches_inference(template, bpe_tokenizer, messages)
