"""Rows of other forms become LLaVA's records if their meaning is certain, and are refused otherwise."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_forms import RECORDS, WITHOUT_SYSTEM, messages, sharegpt, texts, with_parts
from record_forms import turns as llavas

from llava.data.forms import as_record, content_of, image_values
from llava.data.record import (
    BadRecord,
    Picture,
    Unclear,
    describe_record,
    image_files,
    outside_files,
    system_text,
    turns_of,
    validate_record,
)


def essence(record: dict) -> tuple:
    validate_record(record, "here")
    return record.get("id"), image_files(record), system_text(record), turns_of(record)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize(
    "form",
    [
        messages,
        with_parts,
        *(lambda record, key=key: with_parts(record, key) for key in ("image", "path", "url")),
        sharegpt,
    ],
)
def test_every_form_becomes_the_same_record(record, form):
    row = form(record)
    before = copy.deepcopy(row)
    assert essence(as_record(row)) == essence(record)
    assert row == before


@pytest.mark.parametrize("record", WITHOUT_SYSTEM)
def test_pairs_of_texts_become_turns_with_the_pictures_ahead(record):
    assert essence(as_record(texts(record))) == essence(record)


def test_a_record_of_llavas_form_is_given_back_itself():
    for record in (*RECORDS, "words", 7, None, BadRecord("x")):
        assert as_record(record) is record


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and "<image>" not in text
)


@st.composite
def records(draw):
    said, files = [], []
    for _ in range(draw(st.integers(1, 3))):
        question = [draw(words) for _ in range(draw(st.integers(1, 3)))]
        files += [draw(words) for _ in question[1:]]
        said += ["<image>".join(question), draw(words)]
    record = {"id": draw(st.none() | words), "conversations": llavas(*said)}
    if files:
        record["image"] = files
    if draw(st.booleans()):
        record["conversations"].insert(0, {"from": "system", "value": draw(words)})
    return record


@given(records(), st.sampled_from([messages, with_parts, sharegpt]))
def test_a_record_converted_and_back_is_itself(record, form):
    validate_record(record, "here")
    assert as_record(form(record)) == record


def test_pictures_within_a_row_are_named_by_number_and_path_and_found_again():
    a, b = b"first", b"second"
    for row in (
        {"images": [{"bytes": a, "path": "a.png"}, {"bytes": b, "path": None}]},
        {"images": [{"bytes": a, "path": "a.png"}, b]},
        {"image": [{"bytes": a, "path": "a.png"}, b]},
    ):
        row["messages"] = [
            {"role": "user", "content": "<image><image>Which?"},
            {"role": "assistant", "content": "A."},
        ]
        record = as_record(row)
        validate_record(record, "here")
        assert image_files(record) == ["picture 0 (a.png)", "picture 1"]
        assert outside_files(record) == []
        found = [content_of(image_values(row)[file.number]) for file in image_files(record)]
        assert found == [a, b]


def test_a_picture_within_a_part_of_a_turn():
    part = {"type": "image", "image": {"bytes": b"x", "path": None}, "text": None}
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A."}]}
    record = as_record(row)
    validate_record(record, "here")
    assert isinstance(image_files(record)[0], Picture)
    assert content_of(image_values(row)[0]) == b"x"


def test_what_is_empty_in_a_tables_row_says_nothing():
    row = {"id": None, "image": None, "images": [], "messages": None, "texts": [], "system": None}
    row["conversations"] = [
        {"from": None, "value": None, "role": role, "content": content, "tool_calls": None, "weight": 1}
        for role, content in (("user", "Hi"), ("assistant", "Hello!"))
    ]
    record = as_record(row)
    validate_record(record, "here")
    assert turns_of(record) == llavas("Hi", "Hello!")


def test_texts_of_another_kind_are_left_aside():
    assert as_record({**RECORDS[2], "texts": ["a", "b"]})["conversations"] == RECORDS[2]["conversations"]


ASK = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It."}]
URL = "https://x.org/a.png"


def asked(*parts, **more):
    return {"messages": [{"role": "user", "content": list(parts)}, ASK[1]], **more}


IMAGE, WHAT = {"type": "image"}, {"type": "text", "text": "What?"}
UNCERTAIN = [
    ({"conversations": llavas("Hi", "A."), "messages": ASK[1:]}, "'conversations' and 'messages' are two"),
    ({"messages": ASK, "texts": [{"user": "a", "assistant": "b"}]}, "'messages' and 'texts' are two"),
    ({"messages": ASK, "image": "a.png", "images": ["b.png"]}, "'image' and 'images' name different"),
    ({"messages": ASK, "images": ["a.png", "b.png"]}, r"1 <image> .* but 2 image file\(s\)"),
    ({"messages": ASK}, r"1 <image> .* but 0 image file\(s\)"),
    (
        {"messages": [{"role": "user", "content": "Hi"}, ASK[1]], "images": ["a.png"]},
        "0 <image> .* but 1 image",
    ),
    ({"messages": [*ASK, {"role": "tool", "content": "7"}], "images": ["a.png"]}, "turn 2 is from 'tool'"),
    (
        {"messages": [ASK[0], {**ASK[1], "tool_calls": [{"name": "f"}]}], "images": ["a"]},
        "turn 1: 'tool_calls'",
    ),
    ({"messages": [ASK[0], {**ASK[1], "weight": 0}], "images": ["a.png"]}, "turn 1: 'weight'"),
    ({"messages": [ASK[0], {**ASK[1], "reasoning_content": "Hm"}]}, "turn 1: 'reasoning_content'"),
    ({"messages": [{**ASK[0], "images": ["a.png"]}, ASK[1]]}, "turn 0: 'images'"),
    ({"messages": ASK, "images": ["a.png"], "tools": [{"name": "f"}]}, "'tools'"),
    ({"messages": ASK, "images": ["a.png"], "objects": {"bbox": [1]}}, "'objects'"),
    ({"messages": ASK, "images": ["a.png"], "videos": ["a.mp4"]}, "'videos' is not read"),
    ({"messages": ASK, "images": [{"url": URL}]}, "picture 0 is a web address.*https://x.org/a.png.*fetch"),
    (asked({"type": "image_url", "image_url": {"url": URL}}), "picture 0 is a web address"),
    (asked({"type": "image", "image": "a.png", "path": "b.png"}), "names two pictures"),
    (asked({"type": "image", "image": "a.png"}, images=["b.png"]), "'images' and .* name different"),
    (asked(IMAGE, WHAT), "1 <image> .* but 0 image"),
    (asked({"type": "image", "index": 1}, {"type": "image", "index": 0}, images=["a", "b"]), "turn 0.*order"),
    (asked({"type": "video", "video": "a.mp4"}), "turn 0: .*'video'.* is not read"),
    (asked({"type": "text", "text": None}), "turn 0: .*is not read"),
    (asked(7), "turn 0: 7 is not read"),
    (asked(IMAGE, {"type": "text", "text": "An <image>?"}, images=["a"]), "turn 0: .*contains <image>"),
    ({"conversations": [{"from": "human", "role": "assistant", "value": "Hi"}]}, "'from' and 'role' differ"),
    ({"conversations": [{"from": "human", "content": "a", "value": "b"}]}, "'value' and 'content' differ"),
    ({"messages": [ASK[1], ASK[0]], "images": ["a.png"]}, "turn 0 is from 'gpt'"),
    ({"messages": "Hi"}, "'conversations' is missing or empty"),
    ({"messages": ["Hi"]}, "turn 0 is from 'Hi'"),
    ({"messages": [{"role": "user"}, ASK[1]]}, r"turn 0 \(human\) has the value None"),
    ({"texts": [{"user": None, "assistant": "A."}]}, r"turn 0 \(human\) has the value None"),
    ({"images": [{"bytes": None, "path": None}], "messages": ASK}, "'image' is .*None.*file name"),
    ({"images": [None], "messages": ASK}, r"'image' is \[None\]"),
    ({"images": [{"bytes": "aGk="}], "messages": ASK}, "'image' is .*aGk=.*file name"),
    ({"image": True, "messages": ASK}, r"'image' is \[True\]"),
]


@pytest.mark.parametrize(("row", "problem"), UNCERTAIN)
def test_what_is_not_certain_is_refused_and_named(row, problem):
    record = as_record({"id": "x", **row})
    with pytest.raises(BadRecord, match=rf"^here: .*{problem}") as error:
        validate_record(record, "here")
    assert len(str(error.value).splitlines()) == 1
    assert describe_record("a.json", 4, record) == "a.json, record 4 (id x)"


def test_an_unclear_row_keeps_its_id():
    unclear = as_record({"id": 7, "messages": ASK, "conversations": ASK})
    assert isinstance(unclear, Unclear)
    assert describe_record("a.json", 0, unclear).endswith("(id 7)")
