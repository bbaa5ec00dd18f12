"""The benchmark of training data: its records are valid, and its tables have all rows and columns."""

import json

import pytest

from llava.benchmark import data
from llava.benchmark.__main__ import main
from llava.benchmark.data import KnownTexts, byte_tokenizer, render
from llava.data.validate import validate


def test_its_records_are_good_and_have_one_picture(tmp_path):
    render(tmp_path, 20)
    problems = []
    counts = validate(
        [str(tmp_path / "data.json")], str(tmp_path / "images"), check_images=True, report=problems.append
    )
    assert problems == []
    assert counts == {"records": 20, "images": 20, "turns": 200}
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_what_is_tokenised_a_second_time_is_the_same():
    tokenizer = byte_tokenizer()
    known = KnownTexts(tokenizer)
    for _ in range(2):
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        assert dict(known("a red bus", **options)) == dict(tokenizer("a red bus", **options))


@pytest.fixture
def one_process(monkeypatch):
    """The second opening gets the figures of the first: a new process costs more than what it measures."""
    in_new_process, figures = data._in_new_process, []

    def once(*args):
        if not figures:
            figures.append(in_new_process(*args))
        return figures[0]

    monkeypatch.setattr(data, "_in_new_process", once)


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_the_command_prints_openings_and_stages_and_writes_them(tmp_path, capsys):
    main(["data", *f"--records 30 --workers 1 --samples 3 --output_dir {tmp_path}".split()])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [line[0].strip("| ") for line in lines]
    assert names[:3] == ["records", "---", "30"]
    assert names[3:7] == ["records per second", "---", "whole sample", "find"]
    assert names[-1] == "our overhead, ms per sample"
    assert {len(line) for line in lines[3:]} == {2}
    (row,) = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert row["records"] == 30
    assert list(row["first"]["stages"]) == list(row["again"]["stages"]) == ["1"]
