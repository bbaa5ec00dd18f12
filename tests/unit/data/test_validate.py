"""The validator names what training would refuse, and counts the rest."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from test_stream import png, turns, with_image, write

from llava.data.validate import main, validate

GOOD = {"id": 1, "image": "a.png", "conversations": turns("<image>\nWhat?", "A bus.", "Sure?", "Yes.")}
TEXT = {"id": 2, "conversations": turns("Hi", "Hello!")}


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
    assert sum("the template 'plain' takes one image" in problem for problem in problems) == 2


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
    with pytest.raises(SystemExit, match="validate: --version must be one of"):
        main([str(folder / "good.json"), "--version", "v9"])


def test_help_comes_without_heavy_imports():
    code = (
        "import sys; from llava.data.validate import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'torch', 'transformers', 'webdataset'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
