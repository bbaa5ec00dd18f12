"""scripts/convert_{mmvet,docvqa}_for_eval.py with complete and damaged answers files."""

import json

import pytest
from benchmarks import write_jsonl
from messages import assert_names

from llava.published import COMMANDS


@pytest.fixture
def convert(tmp_path):
    """Runs a script on rows of answers; returns (exit code, the content of the file it wrote, or None)."""

    def run(script: str, rows: list[dict]) -> tuple:
        source, target = tmp_path / "a.jsonl", tmp_path / "out" / "m.json"
        write_jsonl(source, rows)
        code = COMMANDS[script].main(["--src", str(source), "--dst", str(target)])
        return code, json.loads(target.read_text()) if target.exists() else None

    return run


def test_mmvet_answers_get_the_benchmarks_ids(convert):
    rows = [{"question_id": 0, "text": "größer."}, {"question_id": 217, "text": ""}]
    assert convert("scripts/convert_mmvet_for_eval.py", rows) == (0, {"v1_0": "größer.", "v1_217": ""})


def test_docvqa_answers_lose_a_last_period(convert):
    rows = [{"questionId": 57344, "answer": "Größe 3.5."}, {"questionId": 57345, "answer": ""}]
    expected = [{"questionId": 57344, "answer": "Größe 3.5"}, {"questionId": 57345, "answer": ""}]
    assert convert("scripts/convert_docvqa_for_eval.py", rows) == (0, expected)


@pytest.mark.parametrize(
    ("script", "row"),
    [
        ("scripts/convert_mmvet_for_eval.py", {"question_id": 7, "text": "a"}),
        ("scripts/convert_docvqa_for_eval.py", {"questionId": 7, "answer": "a"}),
    ],
)
def test_an_id_that_stands_twice_is_refused(convert, script, row, capsys):
    assert convert(script, [row, row]) == (1, None)
    assert_names(capsys.readouterr().err, "question 7 occurs more than once")
