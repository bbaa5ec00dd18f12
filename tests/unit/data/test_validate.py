"""The validator names the records that training would refuse, and counts the others."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from shards import png, turns, with_image, write
from transformers import CLIPImageProcessor

from llava.data.dataset import SupervisedDataset
from llava.data.record import BadRecord
from llava.data.sample import SampleBuilder
from llava.data.validate import main, validate
from llava.errors import UserError

GOOD = {"id": 1, "image": "a.png", "conversations": turns("<image>\nWhat?", "A bus.", "Sure?", "Yes.")}
TEXT = {"id": 2, "conversations": turns("Hi", "Hello!")}
PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
CAPTION = {"id": 3, "image": ["a.png"], "conversations": turns("<image>", "A bus.")}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    records = [
        GOOD,
        TEXT,
        {"id": 3},
        {**GOOD, "id": 4, "image": "lost.png"},
        {**GOOD, "id": 5, "image": "broken.png"},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(GOOD)}\n{{\n{json.dumps(TEXT)}\n")
    (tmp_path / "cut.json").write_text(json.dumps([GOOD, TEXT])[:-20])
    write(
        tmp_path / "0.tar", {"k1": with_image(1), "k2": {"json": {}}, "k3": {"txt": "a bus", "png": png(1)}}
    )
    write(tmp_path / "1.tar", {"k4": {**with_image(1), "png": b""}})
    (tmp_path / "2.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:1200])
    return tmp_path


def run(folder, *arguments) -> tuple[list[str], dict]:
    problems = []
    paths = [str(folder / name) for name in arguments[0].split()]
    counts = validate(paths, *arguments[1:], report=problems.append)
    assert counts.pop("problems", 0) == len(problems)
    return [problem.removeprefix(f"{folder}/") for problem in problems], dict(counts)


def test_form_alone_then_files_then_whole_images(folder):
    problems, counts = run(folder, "data.json")
    assert [problem.split(": ")[0] for problem in problems] == ["data.json, record 2 (id 3)"]
    assert counts == {"records": 4, "images": 3, "turns": 14}
    problems, counts = run(folder, "data.json", folder)
    assert "record 3 (id 4): image file" in problems[1]
    assert counts == {"records": 3, "images": 2, "turns": 10}
    problems, counts = run(folder, "data.json", folder, "v1", True)
    assert "broken.png cannot be read" in problems[2]
    assert counts == {"records": 2, "images": 1, "turns": 6}


def test_each_broken_line_and_file_is_a_problem_and_the_others_are_read(folder):
    problems, counts = run(folder, "cut.json none.json data.jsonl")
    assert problems[0].startswith("cut.json, line 1, column")
    assert "none.json" in problems[1]
    assert problems[2].startswith("data.jsonl, line 2, column")
    assert counts == {"records": 3, "images": 2, "turns": 10}


def test_shards_are_read_to_the_end_whatever_is_bad_in_between(folder):
    problems, counts = run(folder, "{0..2}.tar")
    assert problems[0].startswith("0.tar, sample k2: 'conversations' is missing")
    assert problems[1].startswith("2.tar: ReadError")
    assert counts == {"records": 3, "images": 3, "turns": 6}
    assert "k4.png cannot be read" in run(folder, "{0..2}.tar", None, "v1", True)[0][1]


def test_the_template_is_part_of_the_check(folder):
    problems, _ = run(folder, "data.jsonl", None, "plain")
    assert sum("'plain' takes one image" in problem for problem in problems) == 2


NASTY = (
    *("a.png", "", ".", "..", "lost.png", "nul\0.png", "half\udc00.png", "\ud83d", "x" * 300, "/a.png"),
    *("<image>", "Hi", " ", "<image>\nHi", "<video>", None, 0, 7, 1.5, True, [], {}, ["a.png", "a.png"]),
    *([["a.png"]], {"bytes": "x"}, [None], "system", "human", "gpt", "user", [TEXT["conversations"][0]]),
)
KEYS = ("id", "image", "conversations", "system", "images", "video", "messages", "Image", "meta", "turns")
values = st.sampled_from(NASTY)
changes = st.lists(
    st.tuples(st.sampled_from(KEYS), values)
    | st.tuples(
        st.sampled_from(["turn"]), st.integers(0, 3), st.sampled_from(["from", "value", "role"]), values
    )
    | st.tuples(st.sampled_from(["first", "drop"])),
    min_size=1,
    max_size=3,
)


def changed(record: dict, edits: list[tuple]) -> object:
    record = json.loads(json.dumps(record))
    for edit in edits:
        turns_now = record.get("conversations")
        if len(edit) == 2:
            record[edit[0]] = edit[1]
        elif not isinstance(turns_now, list) or not turns_now:
            continue
        elif edit[0] == "first":
            turns_now.insert(0, {"from": "system", "value": "Be brief."})
        elif edit[0] == "drop":
            turns_now.pop()
        elif isinstance(turn := turns_now[edit[1] % len(turns_now)], dict):
            turn[edit[2]] = edit[3]
    return record


@pytest.mark.slow
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    version=st.sampled_from(["v1", "plain", "llama_2", "qwen_2"]),
    edits=st.lists(st.tuples(st.sampled_from([GOOD, TEXT, CAPTION]), changes), min_size=1, max_size=4),
)
def test_training_says_of_every_record_what_the_validator_says(folder, bpe_tokenizer, version, edits):
    records = [changed(record, edit) for record, edit in edits] + [CAPTION if version == "plain" else TEXT]
    (folder / "data.json").write_text(json.dumps(records))
    problems = []
    counts = validate([str(folder / "data.json")], str(folder), version, True, report=problems.append)
    for problem in problems:
        problem.encode()
    builder = SampleBuilder(bpe_tokenizer, PROCESSOR, version, None, visual_positions=lambda size: 4)
    dataset = SupervisedDataset([folder / "data.json"], builder, folder, on_bad_record="skip")
    assert dataset.bad_records == problems
    assert len(list(dataset)) == len(dataset) == counts["records"], "what is good can be trained on"
    if problems:
        with pytest.raises(BadRecord) as error:
            SupervisedDataset([folder / "data.json"], builder, folder)
        assert all(problem in str(error.value) for problem in problems)


OTHER_KINDS = {
    "a.yaml": b"datasets:\n  - json_path: a.json\n",
    "a.csv": b"image,question\n",
    "a.jsonl.gz": b"\x1f\x8b" + bytes(9),
    "a.zip": b"PK\x03\x04",
    "a.parquet": b"PAR1",
    "a.arrow": b"ARROW1",
    "missing.parquet": None,
    "no/such_set:of:hub": None,
    "utf16.json": "[1]".encode("utf-16"),
    "missing.json": None,
    "missing.tar.gz": None,
    "empty.json": b"",
    "latin.json": '["\xe9"]'.encode("latin-1"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_training_says_of_a_file_of_another_kind_what_the_validator_says(tmp_path, bpe_tokenizer, name):
    if OTHER_KINDS[name] is not None:
        (tmp_path / name).write_bytes(OTHER_KINDS[name])
    problems = []
    validate([str(tmp_path / name)], report=problems.append)
    builder = SampleBuilder(bpe_tokenizer, None, "v1", None, visual_positions=lambda size: 4)
    with pytest.raises(UserError) as error:
        SupervisedDataset([str(tmp_path / name)], builder, tmp_path)
    assert problems == [str(error.value)]
    assert len(problems[0].splitlines()) == 1


def test_the_exit_status_tells(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(folder / "data.json")])
    assert stop.value.code == 1
    output = capsys.readouterr().out.splitlines()
    assert "record 2 (id 3)" in output[0]
    assert output[-1] == "4 good records with 3 images and 14 turns; 1 problems"
    (folder / "good.json").write_text(json.dumps([GOOD]))
    with pytest.raises(SystemExit) as stop:
        main([str(folder / "good.json"), "--image_folder", str(folder), "--check_images"])
    assert stop.value.code == 0
    with pytest.raises(SystemExit, match="--version.*'v9'"):
        main([str(folder / "good.json"), "--version", "v9"])
