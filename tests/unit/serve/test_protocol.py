"""Bodies of requests, without a model: what is read, what is refused, and with which message."""

import json

import pytest

from llava.conversation import conv_templates
from llava.errors import UserError

pytest.importorskip("pydantic", reason="the API's packages are not installed (extra serve)")

from llava.serve.protocol import NEUTRAL, NEUTRAL_IN_MESSAGE, ApiError, read_request

TEXT = {"type": "text", "text": "hi"}
LONG = "x" * 100_000


def body(content="hi", **fields) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


def read(value):
    return read_request(value if isinstance(value, bytes) else json.dumps(value).encode())


def refusal(value) -> str:
    with pytest.raises(UserError) as caught:
        read(value)
    return str(caught.value)


def conversation(*said, **fields) -> dict:
    """Messages of user and assistant in turn, the last from the user."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(said)]
    return {"model": "tiny", "messages": messages, **fields}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_field_that_is_not_honoured_is_refused_by_name_unless_it_asks_for_nothing(name):
    for value in NEUTRAL[name]:
        read(body(**{name: value}))
    for value in (7, "other", {"a": 1}, ["a"], -0.5):
        assert refusal(body(**{name: value})).startswith(f"{name} is not supported")


@pytest.mark.parametrize("name", NEUTRAL_IN_MESSAGE)
def test_so_is_one_of_a_message(name):
    def with_field(value):
        request = conversation("hi", "hello", "why?")
        request["messages"][1][name] = value
        return request

    for value in NEUTRAL_IN_MESSAGE[name]:
        read(with_field(value))
    assert refusal(with_field({"a": 1})).startswith(f"messages[1].{name} is not supported")


@pytest.mark.parametrize(
    "fields",
    [
        {"min_tokens": 1},
        {"best_of": 2},
        {"logit_bias": {"5": 1}},
        {"stop_token_ids": [5]},
        {"ignore_eos": True},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "a"},
        {"structured_outputs": {"choice": ["a"]}},
        {"response_format": {"type": "json_object"}},
        {"top_logprobs": 2},
        {"logprobs": True},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "a"}},
        {"reasoning_effort": "high"},
        {"echo": True},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"chat_template": "{{ messages }}"},
        {"bad_words": ["a"]},
        {"allowed_token_ids": [1]},
        {"skip_special_tokens": False},
        {"use_beam_search": True},
        {"length_penalty": 0.5},
        {"include_stop_str_in_output": True},
        {"n": 2},
    ],
    ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items()),
)
def test_what_would_change_the_answer_and_is_not_honoured_is_refused(fields):
    assert refusal(body(**fields)).startswith(next(iter(fields)))


def test_fields_that_change_no_answer_are_ignored():
    read(
        body(
            user="me",
            metadata={"a": "b"},
            store=True,
            service_tier="auto",
            safety_identifier="me",
            prompt_cache_key="key",
            priority=3,
            request_id="id",
        )
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top_k": -2}, "top_k should be greater than or equal to -1."),
        ({"top_k": 1.5}, "top_k should be a valid integer."),
        ({"min_p": -0.1}, "min_p should be greater than or equal to 0."),
        ({"min_p": 1.1}, "min_p should be less than or equal to 1."),
        ({"repetition_penalty": 0}, "repetition_penalty should be greater than 0."),
        ({"repetition_penalty": float("inf")}, "repetition_penalty should be a finite number."),
        ({"max_tokens": 10**30}, "max_tokens should be less than 9223372036854775808."),
    ],
)
def test_sampling_out_of_its_range_is_refused(fields, says):
    assert refusal(body(**fields)) == says


def test_sampling_within_its_range_is_taken():
    for top_k in (-1, 0, 1, 10**6):
        assert read(body(top_k=top_k)).top_k == top_k
    assert read(body(min_p=0, repetition_penalty=1e-9)).min_p == 0
    assert read(body(min_p=1, repetition_penalty=5)).repetition_penalty == 5


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (body([TEXT, {"type": "video_url"}]), 'messages[0].content[1]: unknown type "video_url"; use'),
        (body([{"type": "input_audio"}]), 'messages[0].content[0]: unknown type "input_audio"; use'),
        (body([{"text": "a"}]), 'messages[0].content[0] must be an object of type "text" or "image_url".'),
        (body(["a"]), 'messages[0].content[0] must be an object of type "text" or "image_url".'),
        (body([TEXT, {"type": "text"}]), "messages[0].content[1].text is missing."),
        (body([{"type": "text", "text": ["a"]}]), "messages[0].content[0].text should be a valid string."),
        (body([{"type": "image_url"}]), "messages[0].content[0].image_url is missing."),
        (
            body([{"type": "image_url", "image_url": "data:,"}]),
            "messages[0].content[0].image_url must be an object.",
        ),
        (body(5), "messages[0].content must be a text or a list."),
        (body(None), "messages[0].content must be a text or a list of parts."),
        (body(messages="a"), "messages should be a valid array."),
        (body(messages=["a"]), "messages[0] must be an object."),
        (body(messages=[]), "messages should have at least 1 item, not 0."),
        (body(messages=[{"content": "a"}]), "messages[0].role is missing."),
        (body(stop=["a"] * 5), "stop may have at most 4 items, got 5."),
        (body(stop=5), "stop must be a text or a list."),
        (body(stop=["a", 5]), "stop[1] should be a valid string."),
        (body(stop=""), "stop should have at least 1 character."),
        ({"messages": []}, "model is missing."),
        (b"[]", "the body must be an object."),
        (b"{", "the body is not JSON (EOF while parsing an object at line 1 column 1)."),
        (b"\xff", "the body is not JSON (expected value at line 1 column 1)."),
        (b"[" * 100_000, "the body is not JSON (recursion limit exceeded"),
    ],
)
def test_what_is_wrong_is_named_in_plain_words(value, says):
    assert refusal(value).startswith(says)


@pytest.mark.parametrize(
    "value",
    [
        body([{"type": LONG}]),
        body(LONG, stop=[LONG]),
        body(messages=[{"role": LONG, "content": "a"}]),
        body(max_tokens=LONG),
        body(**{LONG: 1, "n": 2}),
        b'{"a": ' + LONG.encode(),
        body(max_tokens=int("9" * 4000)),
    ],
)
def test_an_error_repeats_little_of_what_the_client_sent(value):
    assert len(refusal(value)) < 300


def test_every_error_is_bounded():
    assert len(ApiError(400, LONG).body()["error"]["message"]) < 1100


SAID = ["", " ", "\n", "<image>", "an <image> of <image>", None, [], [TEXT], [{"type": "text", "text": ""}]]


@pytest.mark.parametrize("template", ["vicuna_v1", "v0", "llava_llama_2", "mpt", "qwen_2", "llava_llama_3"])
@pytest.mark.parametrize("said", SAID, ids=str)
def test_whatever_the_server_may_have_said_is_taken_as_history(template, said):
    prompt = read(conversation("hi", said, "again?")).prompt(conv_templates[template], False)
    text = said if isinstance(said, str) else "".join(part["text"] for part in said or ())
    plain = read(conversation("hi", "Hello!", "again?")).prompt(conv_templates[template], False)
    assert prompt == plain.replace("Hello!", text)
    assert prompt.marks == ()


def test_an_answer_without_content_is_an_empty_one():
    request = conversation("hi", "", "again?")
    del request["messages"][1]["content"]
    assert read(request).messages[1].text == ""


def test_an_answer_as_openais_client_dumps_it_is_taken_as_history():
    answer = {"role": "assistant", "content": "a", "refusal": None, "annotations": None, "audio": None}
    answer |= {"function_call": None, "tool_calls": None}
    request = conversation("hi", "a", "again?")
    request["messages"][1] = answer
    assert read(request).messages[1].text == "a"


@pytest.mark.parametrize("said", ["", " ", []])
def test_an_empty_system_message_takes_the_place_of_the_templates(said):
    request = body()
    request["messages"].insert(0, {"role": "system", "content": said})
    prompt = read(request).prompt(conv_templates["v1"], False)
    assert prompt.strip() == "USER: hi ASSISTANT:"


@pytest.mark.parametrize(
    "text", ["\ud800", "a\ud800b", "x\udc00", "\udfff\ud800", "y\ud83d\ude00"], ids=ascii
)
def test_lone_surrogates_are_replaced_wherever_they_are(text):
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    request = conversation(text, text, [{"type": "text", "text": text}], stop=[text], user=text)
    request["messages"].insert(0, {"role": "system", "content": text})
    chat = read(json.dumps(request | {text: text}).encode())
    assert [message.text for message in chat.messages] == [whole] * 4
    assert chat.stop_texts == (whole,)
    chat.prompt(conv_templates["v1"], False).encode()
    raw = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert [message.text for message in read(raw).messages] == [whole] * 4
