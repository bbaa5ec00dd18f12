"""Reading records, and a clear message for each kind of bad record."""

import bz2
import gzip
import json
import lzma
import pickle
import tracemalloc

import pytest
from messages import assert_names

from llava.data.files import check_data_file, iter_records, reader_of
from llava.data.forms import as_record
from llava.data.record import BadRecord, describe_record, image_files, validate_record
from llava.errors import UserError


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


GOOD = [
    {"conversations": turns("Hi", "Hello!")},
    {"id": 7, "image": "a.png", "conversations": turns("<image>\nHi", "Hello!", "And?", "Bye.")},
    {"id": "x", "image": ["a.png", "b.png"], "conversations": turns("<image>", "A.", "<image>", "B.")},
]
BAD = [
    ("text", "is a str"),
    ({"id": 1}, "'conversations' is missing"),
    ({"conversations": []}, "'conversations' is missing"),
    ({"conversations": ["Hi"]}, "turn 0.*'Hi'.*'human'"),
    ({"conversations": list(reversed(turns("Hi", "Hello!")))}, "turn 0.*'gpt'.*'human'"),
    ({"conversations": [{"from": "system", "value": "x"}]}, "turn 0.*'system'"),
    (
        {"conversations": turns("Hi", "Hello!", "And?")},
        "last of 3 turns",
    ),
    ({"conversations": turns("Hi", " ")}, r"turn 1 \(gpt\).*' '"),
    ({"conversations": turns(None, "Hello!")}, r"turn 0 \(human\).*None"),
    ({"image": "a.png", "conversations": turns("Hi", "Hello!")}, r"0 <image> .* but 1 image file\(s\)"),
    ({"conversations": turns("<image>", "Hello!")}, r"1 <image> .* but 0 image file\(s\)"),
    ({"image": ["a.png"], "conversations": turns("<image><image>", "Hello!")}, "2 <image> .* but 1 image"),
    ({"image": "a.png", "conversations": turns("Hi", "An <image>")}, "turn 1.*answer.*<image>"),
    ({"image": 3, "conversations": turns("<image>", "Hello!")}, "'image'.*3.*file name"),
]

TALK = turns("Hi", "Hello!")
HALF = "cut \ude00 off"
SYSTEM_TURN = {"from": "system", "value": "Be brief."}
# keys that have a meaning but are not read, and the remedy
BAD += [
    *(
        ({key: value, "conversations": TALK}, rf"'{key}' is not read; name it 'image'\.$")
        for key in ("Images", "Image", "img", "image_path", "image-files", "imageUrl", "picture")
        for value in ("a.png", ["a.png"])
    ),
    *(
        ({key: TALK}, rf"'{key}' is not read; name it 'conversations'\.$")
        for key in ("Messages", "conversation", "Conversations", "dialogue")
    ),
    *(
        ({key: "Be brief.", "conversations": TALK}, rf"'{key}' is not read; name it 'system'\.$")
        for key in ("system_prompt", "System", "system-message")
    ),
    *(
        ({key: "a.mp4", "conversations": turns(f"<{key}>\nHi", "Hello!")}, f"'{key}' is not read: .*remove")
        for key in ("video", "videos", "audio", "Video", "video_path", "audios")
    ),
    ({"system": 3, "conversations": TALK}, "'system' is 3; make it"),
    ({"system": "An <image>.", "conversations": TALK}, "the system text contains <image>"),
    ({"system": "Else.", "conversations": [SYSTEM_TURN, *TALK]}, "two system texts; keep one"),
    ({"conversations": [{"from": "system"}, *TALK]}, r"turn 0 \(system\) has the value None"),
    ({"conversations": [*TALK, SYSTEM_TURN]}, "turn 2 is from 'system', expected 'human'"),
    ({"conversations": [SYSTEM_TURN, TALK[0]]}, "the last of 1 turns is from 'human'"),
    *(
        (
            {**record, "conversations": record.get("conversations", TALK)},
            f"{name} contains U.DE00, a lone surr",
        )
        for record, name in (
            ({"id": HALF}, "'id'"),
            ({"system": HALF}, "'system'"),
            ({"image": HALF, "conversations": turns("<image>", "A.")}, "image 0"),
            ({"image": ["a", HALF], "conversations": turns("<image><image>", "A.")}, "image 1"),
            ({"conversations": turns(HALF, "Hello!")}, "turn 0"),
            ({"conversations": turns("Hi", HALF)}, "turn 1"),
            ({"conversations": [{"from": "system", "value": HALF}, *TALK]}, "'system'"),
        )
    ),
    ({"image": [""], "conversations": turns("<image>", "Hello!")}, r"'image' is \[''\]; make it a file name"),
    (
        {"image": {"bytes": "x" * 9999}, "conversations": TALK},
        r"'image' is \[\{'bytes': 'x{10,90}\.\.\.; make it",
    ),
]
GOOD += [
    {"system": "Be brief.", "conversations": TALK},
    {"conversations": [SYSTEM_TURN, *TALK]},
    {"system": "Be brief.", "conversations": [SYSTEM_TURN, *TALK]},
    # values that are empty, or that training does not use
    {"system": "", "images": [], "video": None, "audio": "", "conversations": TALK},
    {
        "id": {"a": 1},
        "source": "web",
        "width": 3,
        "image_id": 9,
        "metadata": {"video": "x"},
        "conversations": TALK,
    },
    {"image": "a.png", "image_url": "https://x/a.png", "conversations": turns("<image>", "A.")},
    {"conversations": turns("What does <video> mean in HTML? \U0001f600", "A film.")},
]


@pytest.mark.parametrize("record", GOOD)
def test_good_records_pass(record):
    validate_record(as_record(record), "here")


@pytest.mark.parametrize(("record", "problem"), BAD)
def test_bad_records_are_named(record, problem):
    with pytest.raises(BadRecord, match=f"^data.json, record 4: .*{problem}") as error:
        validate_record(as_record(record), "data.json, record 4")
    str(error.value).encode()
    assert len(str(error.value)) < 300


def test_a_record_is_described_by_file_index_and_id():
    assert describe_record("data.json", 4, {"id": "00012"}) == "data.json, record 4 (id 00012)"
    assert describe_record("data.json", 4, ["no object"]) == "data.json, record 4 (id none)"
    assert describe_record("data.json", 4, {"id": "a\ude00"}) == "data.json, record 4 (id a\ufffd)"


def test_image_files():
    assert [len(image_files(record)) for record in GOOD[:3]] == [0, 1, 2]


def test_json_and_jsonl_read_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD, indent=1))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, GOOD)) + "\n\n")
    assert list(iter_records(tmp_path / "a.json")) == list(iter_records(tmp_path / "a.jsonl")) == GOOD


def test_a_list_reads_the_same_whatever_the_size_of_a_read(tmp_path, monkeypatch):
    records = [*GOOD, 12345, "words", [], None]
    (tmp_path / "a.json").write_text(f"\n {json.dumps(records, indent=1)} \n")
    for chunk in (1, 2, 7, 1000):
        monkeypatch.setattr("llava.data.json_reader.CHUNK", chunk)
        assert list(iter_records(tmp_path / "a.json")) == records


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_each_record_is_read_again_by_its_place(tmp_path, monkeypatch, name, line_end, start):
    words = ["plain", "größer \U0001f600", "\ude00", 'a "quote" \n and a line', "\u2028"]
    records = [{"id": number, "words": words[number % 5] * number} for number in range(20)]
    lines = [json.dumps(record, ensure_ascii="\ude00" in record["words"]) for record in records]
    between, around = (f" ,{line_end}", "[]") if name == "a.json" else (line_end, ("", line_end))
    text = start + around[0] + between.join(lines) + around[1]
    (tmp_path / name).write_bytes(text.encode())
    for chunk in (3, 1 << 16):
        monkeypatch.setattr("llava.data.json_reader.CHUNK", chunk)
        reader = reader_of(tmp_path / name)
        found = list(reader.scan())
        assert [record for record, _ in found] == records
        copy = pickle.loads(pickle.dumps(reader))
        for record, place in found:
            assert copy.read(place) == reader.read(place) == record
        done = [reader.done(place) for _, place in found]
        assert done == sorted(done)
        assert 0 <= reader.size - done[-1] <= 3


def test_a_file_that_changes_while_it_is_used_is_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"id": 1}, {"id": 2}]')
    reader = reader_of(tmp_path / "a.json")
    (_, first), (_, second) = reader.scan()
    assert reader.read(first) == {"id": 1}
    (tmp_path / "a.json").write_text('[{"id": 1}, {"id"')
    with pytest.raises(UserError, match="a.json.*changed.*in use"):
        reader.read(second)
    with pytest.raises(UserError, match="a.json.*changed.*in use"):
        pickle.loads(pickle.dumps(reader)).read(first)


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
        ('[\n{"id": 1},\n{"id": }]', r"x.json, line 3, column \d+: .*correct"),
        ('[{"id": 1}\n {"id": 2}]', r"x.json, line 2, column 2: expected ',' or ']'"),
        ('[{"id": 1}]\n]', "x.json, line 2, column 1: .*after the list"),
        ('[{"id": 1},\n', "x.json, line 2, column 1"),
        ('[\n{"id": 1},\n{"id"', "x.json, line 3, .*cut short"),
        (" \n", "x.json is empty"),
        ("[]", "x.json.*empty list"),
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


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("separator", [b"\n", b"\r\n"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, separator):
    lines = [json.dumps(record, ensure_ascii=False).encode() for record in GOOD]
    (tmp_path / "a.jsonl").write_bytes(MARK + separator.join(lines))
    (tmp_path / "a.json").write_bytes(MARK + b"[" + (b"," + separator).join(lines) + b"]")
    assert list(iter_records(tmp_path / "a.jsonl")) == list(iter_records(tmp_path / "a.json")) == GOOD


RECORDS = json.dumps(GOOD).encode()
YAML = b"datasets:\n  - json_path: a.json\n    sampling_strategy: all\n"
TABLE = b"image,question,answer\na.png,What?,It.\n"
OTHER_KINDS = {
    "a.json": (RECORDS.decode().encode("utf-16"), "text in UTF-16"),
    "b.json": (RECORDS.decode().encode("utf-16-le"), "text in UTF-16"),
    "c.jsonl": (RECORDS.decode().encode("utf-32"), "text in UTF-32"),
    "a.yaml": (YAML, "a YAML file.*--data_weights"),
    "yaml": (YAML, "a YAML file"),
    "list.yml": (b"- a: 1\n- a: 2\n", "a YAML file"),
    "a.csv": (TABLE, "a table.*finetune_custom_data"),
    "table": (TABLE, "a table"),
    "tabs.txt": (b"image\tquestion\na.png\tWhat?\n", "a table"),
    "a.tar.gz": (gzip.compress(bytes(2048)), "compressed with gzip.*gunzip"),
    "a.jsonl.gz": (gzip.compress(RECORDS), "compressed with gzip"),
    "gz.json": (gzip.compress(RECORDS), "compressed with gzip"),
    "a.json.bz2": (bz2.compress(RECORDS), "compressed with bzip2"),
    "a.xz": (lzma.compress(RECORDS), "compressed with xz"),
    "a.zip": (b"PK\x03\x04" + bytes(99), "a zip archive"),
    "zip.jsonl": (b"PK\x03\x04" + bytes(99), "a zip archive"),
    "tar": (bytes(257) + b"ustar" + bytes(999), r"a tar archive.*\.tar"),
    "pointer.json": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    "page.json": (b"<!DOCTYPE html>\n<html>", "not JSON.*'<!DOCTYPE html>'"),
    "object.json": (b'{\n "data": []\n}', "one JSON object"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_a_file_of_another_kind_is_named_in_one_line(tmp_path, name):
    content, kind = OTHER_KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is {kind}") as error:
        list(iter_records(tmp_path / name))
    assert_names(str(error.value), "JSON or JSONL", "tar shards")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.tar.gz", "b/{00..63}.tar.gz", "a.zip"])
def test_a_folder_and_files_that_are_not_there_are_named_by_their_names(tmp_path, name):
    with pytest.raises(ValueError, match="JSON or JSONL"):
        check_data_file(tmp_path / name)


def test_a_number_or_a_nesting_without_end_is_a_broken_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n' + "1" * 9999 + "\n" + "[" * 99_999 + '\n{"id": 2}\n')
    first, number, nesting, last = iter_records(tmp_path / "a.jsonl")
    assert (first, last) == ({"id": 1}, {"id": 2})
    assert isinstance(number, BadRecord)
    assert isinstance(nesting, BadRecord)
    (tmp_path / "a.json").write_text("[" + "1" * 9999 + "]")
    with pytest.raises(ValueError, match="a.json, line 1"):
        list(iter_records(tmp_path / "a.json"))
