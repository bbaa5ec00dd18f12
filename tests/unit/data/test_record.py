"""Reading records, and the one clear message for each kind of bad one."""

import json
import tracemalloc

import pytest

from llava.data.record import BadRecord, describe_record, image_files, iter_records, validate_record


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


GOOD = [
    {"conversations": turns("Hi", "Hello!")},
    {"id": 7, "image": "a.png", "conversations": turns("<image>\nHi", "Hello!", "And?", "Bye.")},
    {"id": "x", "image": ["a.png", "b.png"], "conversations": turns("<image>", "A.", "<image>", "B.")},
]
BAD = [
    ("text", "it is a str; make it an object"),
    ({"id": 1}, "'conversations' is missing or empty"),
    ({"conversations": []}, "'conversations' is missing or empty"),
    ({"conversations": ["Hi"]}, "turn 0 is from 'Hi', expected 'human'"),
    ({"conversations": list(reversed(turns("Hi", "Hello!")))}, "turn 0 is from 'gpt', expected 'human'"),
    ({"conversations": [{"from": "system", "value": "x"}]}, "turn 0 is from 'system'"),
    (
        {"conversations": turns("Hi", "Hello!", "And?")},
        "the last of 3 turns is the human's; add the gpt's answer",
    ),
    ({"conversations": turns("Hi", " ")}, r"turn 1 \(gpt\) has the value ' '"),
    ({"conversations": turns(None, "Hello!")}, r"turn 0 \(human\) has the value None"),
    ({"image": "a.png", "conversations": turns("Hi", "Hello!")}, r"0 <image> .* but 1 image file\(s\)"),
    ({"conversations": turns("<image>", "Hello!")}, r"1 <image> .* but 0 image file\(s\)"),
    ({"image": ["a.png"], "conversations": turns("<image><image>", "Hello!")}, "2 <image> .* but 1 image"),
    ({"image": "a.png", "conversations": turns("Hi", "An <image>")}, "turn 1, an answer, contains <image>"),
    ({"image": 3, "conversations": turns("<image>", "Hello!")}, "'image' is 3; make it a file name"),
]


@pytest.mark.parametrize("record", GOOD)
def test_good_records_pass(record):
    validate_record(record, "here")


@pytest.mark.parametrize(("record", "problem"), BAD)
def test_bad_records_are_named(record, problem):
    with pytest.raises(BadRecord, match=f"^data.json, record 4: .*{problem}"):
        validate_record(record, "data.json, record 4")


def test_a_record_is_described_by_file_index_and_id():
    assert describe_record("data.json", 4, {"id": "00012"}) == "data.json, record 4 (id 00012)"
    assert describe_record("data.json", 4, ["no object"]) == "data.json, record 4 (id none)"


def test_image_files():
    assert [len(image_files(record)) for record in GOOD] == [0, 1, 2]


def test_json_and_jsonl_read_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD, indent=1))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, GOOD)) + "\n\n")
    assert list(iter_records(tmp_path / "a.json")) == list(iter_records(tmp_path / "a.jsonl")) == GOOD


def test_a_list_reads_the_same_whatever_the_size_of_a_read(tmp_path, monkeypatch):
    records = [*GOOD, 12345, "words", [], None]
    (tmp_path / "a.json").write_text(f"\n {json.dumps(records, indent=1)} \n")
    for chunk in (1, 2, 7, 1000):
        monkeypatch.setattr("llava.data.record.CHUNK", chunk)
        assert list(iter_records(tmp_path / "a.json")) == records


def test_a_long_file_is_never_held_whole(tmp_path):
    one = json.dumps(GOOD[1])
    (tmp_path / "a.json").write_text("[" + ",\n".join([one] * 10_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in iter_records(tmp_path / "a.json")) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "a.json").stat().st_size / 4


def test_a_broken_line_of_jsonl_is_one_bad_record_among_good_ones(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n\n{"id": 2\n{"id": 3}\n')
    first, broken, last = iter_records(tmp_path / "a.jsonl")
    assert (first, last) == ({"id": 1}, {"id": 3})
    with pytest.raises(BadRecord, match="a.jsonl, line 3, column"):
        validate_record(broken, "unused")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"id": 1},\n{"id": }]', r"x.json, line 3, column \d+: .*; correct it"),
        ('[{"id": 1}\n {"id": 2}]', r"x.json, line 2, column 2: expected ',' or ']'"),
        ('[{"id": 1}]\n]', "x.json, line 2, column 1: expected nothing after the list"),
        ('[{"id": 1},\n', "x.json, line 2, column 1"),
        ('[\n{"id": 1},\n{"id"', "x.json, line 3, .*fetch the file again if it was cut short"),
        (" \n", "x.json is empty"),
        ("[]", "x.json holds an empty list"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(iter_records(tmp_path / "x.json"))


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.json.*check --data_path"):
        list(iter_records(tmp_path / "none.json"))
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b.json.*check --data_path"):
        list(iter_records(tmp_path / "b.json"))
