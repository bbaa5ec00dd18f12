"""Ids are those of inference, and only the assistant's words carry loss, for each template and tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.data.targets import build_targets, conversation_from_record
from llava.mm_utils import tokenizer_image_token

CHAT_TEMPLATES = list(  # one name of each; test_conversation.py has the prompts of every name
    {id(c): name for name, c in conv_templates.items() if c.sep_style is not SeparatorStyle.PLAIN}.values()
)
SPLIT_MARKS = {
    "mpt",
    "chatml_direct",
    "mistral_direct",
    "llava_llama_3",
}  # templates in which one mark follows another
# spaces, line ends and pieces of the templates' marks, where tokens could cross a border
words = st.lists(
    st.sampled_from(["A", "red", "bus", ".", ",", "12", " ", "  ", "\n", "#", "é", "中", "😀", "<", "\t"])
    | st.text(st.characters(codec="utf-8", exclude_characters="<|▁"), max_size=3),
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
    """Each run of consecutive target ids."""
    found, previous = [], IGNORE_INDEX
    for label in labels:
        if label != IGNORE_INDEX:
            found = [*found, [label]] if previous == IGNORE_INDEX else [*found[:-1], [*found[-1], label]]
        previous = label
    return found


def says(tokenizer, ids) -> str:
    """The text of ids in the middle of a prompt, with the leading space, which decoding drops."""
    anchor = tokenizer("x", add_special_tokens=False).input_ids
    return tokenizer.decode([*anchor, *ids], clean_up_tokenization_spaces=False).removeprefix("x")


def check_training_matches_inference(template, tokenizer, messages):
    ids, labels = build_targets(talk(template, messages), tokenizer)
    generation = tokenizer_image_token(talk(template, [*messages[:-1], None]).get_prompt(), tokenizer)
    assert ids[: len(generation)] == generation
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    segments = [segment.text for segment in talk(template, messages).segments() if segment.is_target]
    spoken = [says(tokenizer, run) for run in runs(labels)]
    if template in SPLIT_MARKS and "><" in tokenizer.tokenize(f"x{conv_templates[template].sep}<"):
        # the end's ">" and the next turn's "<" are one token, which belongs to neither
        segments[:-1] = [segment.removesuffix(">") for segment in segments[:-1]]
    assert spoken == segments


any_messages = given(question=said, first=stripped, again=said, last=said)
few = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@few
@any_messages
def test_training_matches_inference_in_sentencepiece(
    template, sentencepiece_tokenizer, question, first, again, last
):
    messages = [f"<image>\n{question}", first, again, last]
    check_training_matches_inference(template, sentencepiece_tokenizer, messages)


# Llama 3's answers begin with two line ends, which only its own tokenizers encode alike everywhere: GPT-2's
# kind makes one token of them at a prompt's end, and two before words
@pytest.mark.slow
@pytest.mark.parametrize("template", [name for name in CHAT_TEMPLATES if name != "llava_llama_3"])
@few
@any_messages
def test_training_matches_inference_in_byte_level_bpe(template, bpe_tokenizer, question, first, again, last):
    messages = [f"<image>\n{question}", first, again, last]
    check_training_matches_inference(template, bpe_tokenizer, messages)


@pytest.mark.parametrize("template", ["llava_llama_3", "qwen_2", "v1"])
@few
@any_messages
def test_training_matches_inference_in_llama_3s_kind(
    template, llama_3_tokenizer, question, first, again, last
):
    messages = [f"<image>\n{question}", first, again, last]
    check_training_matches_inference(template, llama_3_tokenizer, messages)


def test_labels_token_by_token_in_llama_3s_kind(llama_3_tokenizer):
    ids, labels = build_targets(talk("llava_llama_3", ["<image>\nHi", "A red bus."]), llama_3_tokenizer)
    assert llama_3_tokenizer.convert_ids_to_tokens(ids[:2]) == ["<|begin_of_text|>", "<|start_header_id|>"]
    assert ids.count(llama_3_tokenizer.bos_token_id) == 1
    line_ends = llama_3_tokenizer("\n\n", add_special_tokens=False).input_ids
    assert len(line_ends) == 1
    start = labels.index(next(label for label in labels if label != IGNORE_INDEX))
    assert ids[start - 1] == line_ends[0]
    assert llama_3_tokenizer.decode(ids[start:]) == "A red bus.<|eot_id|>"
    assert labels[start:] == ids[start:]


def test_labels_token_by_token_in_sentencepiece(sentencepiece_tokenizer):
    ids, labels = build_targets(talk("v1", ["<image>\nHi", "A red bus."]), sentencepiece_tokenizer)
    assert ids[0] == sentencepiece_tokenizer.bos_token_id
    assert ids.count(IMAGE_TOKEN_INDEX) == 1
    targets = sentencepiece_tokenizer.convert_ids_to_tokens([x for x in labels if x != IGNORE_INDEX])
    assert targets == ["▁A", "▁red", "▁bus", ".", "</s>"]


def test_labels_token_by_token_in_byte_level_bpe(bpe_tokenizer):
    ids, labels = build_targets(talk("qwen_2", ["<image>\nHi", "A red bus."]), bpe_tokenizer)
    end = bpe_tokenizer.eos_token_id
    assert ids[-2] == labels[-2] == end
    assert labels[-1] == IGNORE_INDEX  # the line end after the end of the turn
    assert labels.count(end) == 1
    assert bpe_tokenizer.decode([x for x in labels if x != IGNORE_INDEX]) == "A red bus.<|im_end|>"


def test_an_answer_that_would_merge_into_its_prompt_is_tokenised_apart(bpe_tokenizer):
    double = bpe_tokenizer("\n\n", add_special_tokens=False).input_ids
    assert len(double) == 1, "the fixture must know two line ends as one token"
    ids, labels = build_targets(talk("qwen_2", ["Hi", "\n\nA bus.", "And?", "\n\nTwo."]), bpe_tokenizer)
    whole = bpe_tokenizer(talk("qwen_2", ["Hi", "\n\nA bus."]).get_prompt()).input_ids
    assert whole.count(double[0]) == 1, "the whole prompt must merge across"
    assert [bpe_tokenizer.decode(run) for run in runs(labels)] == [
        "\n\nA bus.<|im_end|>",
        "\n\nTwo.<|im_end|>",
    ]
    generation = tokenizer_image_token(talk("qwen_2", ["Hi", None]).get_prompt(), bpe_tokenizer)
    assert ids[: len(generation)] == generation


@pytest.mark.parametrize("template", ["plain", "v0_plain"])
def test_plain_trains_on_the_whole_caption(template, sentencepiece_tokenizer, bpe_tokenizer):
    record = {"image": "a.png", "conversations": turns("Describe.\n<image>", "A red bus.")}
    for tokenizer in (sentencepiece_tokenizer, bpe_tokenizer):
        ids, labels = build_targets(conversation_from_record(record, template), tokenizer)
        caption = tokenizer("A red bus.\n", add_special_tokens=False).input_ids
        start = tokenizer("").input_ids
        assert ids == [*start, IMAGE_TOKEN_INDEX, *caption]
        assert labels == [IGNORE_INDEX] * (len(start) + 1) + caption


def test_an_unanswered_prompt_has_no_targets(bpe_tokenizer):
    _, labels = build_targets(talk("v1", ["Hi", None]), bpe_tokenizer)
    assert set(labels) == {IGNORE_INDEX}


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast, bos_token_id = False, None

        def __call__(self, text, **kwargs):
            return {"input_ids": [ord(c) for c in text]}

    with pytest.raises(ValueError, match="slow tokenizer"):
        build_targets(talk("v1", ["Hi", "Hello!"]), Slow())


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_the_image_of_a_turn_goes_ahead_of_its_words():
    record = {"image": "a.png", "conversations": turns("What is this?\n<image>", "A bus.", "Sure?", "Yes.")}
    messages = [message for _, message in conversation_from_record(record, "v1").messages]
    assert messages == ["<image>\nWhat is this?", "A bus.", "Sure?", "Yes."]
    assert (
        conversation_from_record(record, "v1_mmtag").messages[0][1] == "<Image><image></Image>\nWhat is this?"
    )
    with_marks = conversation_from_record(record, "v1", mm_use_im_start_end=True)
    assert with_marks.messages[0][1] == "<im_start><image><im_end>\nWhat is this?"


def test_several_images_of_a_turn_stay_where_they_are():
    record = {"image": ["a", "b"], "conversations": turns("Is <image> like <image>?", "No.")}
    assert conversation_from_record(record, "v1").messages[0][1] == "Is <image> like <image>?"


def test_plain_refuses_a_conversation_and_unknown_templates_are_named():
    record = {"conversations": turns("Hi", "Hello!")}
    with pytest.raises(ValueError, match=r"0 image.*2 turns"):
        conversation_from_record(record, "plain")
    with pytest.raises(ValueError, match=r"--version.*chatml_direct.*'v9'"):
        conversation_from_record(record, "v9")


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("as_turn", [False, True])
def test_a_records_system_text_stands_where_inference_puts_it_and_carries_no_loss(
    template, as_turn, bpe_tokenizer
):
    spoken = turns("Hi", "Hello!", "And?", "Bye.")
    said = {"from": "system", "value": "Always answer in French."}
    record = (
        {"conversations": [said, *spoken]} if as_turn else {"system": said["value"], "conversations": spoken}
    )
    conversation = conversation_from_record(record, template)
    expected = conv_templates[template].with_system("Always answer in French.")
    for index, turn in enumerate(spoken):
        expected.append_message(expected.roles[index % 2], turn["value"])
    assert conversation.get_prompt() == expected.get_prompt()
    assert "Always answer in French." in expected.get_prompt()
    spoken_ids = runs(build_targets(conversation, bpe_tokenizer)[1])
    without = runs(
        build_targets(conversation_from_record({"conversations": spoken}, template), bpe_tokenizer)[1]
    )
    assert spoken_ids == without


@pytest.mark.parametrize("system", ["", "  ", None])
def test_an_empty_system_text_leaves_the_templates_own(system):
    record = {"conversations": turns("Hi", "Hello!")}
    own = conversation_from_record(record, "v1").get_prompt()
    assert conversation_from_record({"system": system, **record}, "v1").get_prompt() == own


def test_plain_has_no_place_for_a_system_text():
    record = {"system": "Be brief.", "image": "a.png", "conversations": turns("<image>", "A bus.")}
    with pytest.raises(ValueError, match="system part"):
        conversation_from_record(record, "plain")
