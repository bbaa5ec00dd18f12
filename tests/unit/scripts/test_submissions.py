"""scripts/convert_*_for_*.py with complete and damaged answers files."""

import json

import benchmarks
import pytest
from benchmarks import read_jsonl, write_jsonl
from messages import assert_names
from openpyxl import load_workbook

from llava.published import COMMANDS


def answer_rows(*answers: tuple) -> list[dict]:
    return [{"question_id": i, "prompt": "?", "text": text, "model_id": "m"} for i, text in answers]


@pytest.fixture
def vqav2(tmp_path):
    """Yields the folder, the answers, and a function that runs the script."""
    folder = benchmarks.vqav2(tmp_path)
    split = "llava_vqav2_mscoco_test-dev2015"
    merged = folder / "answers" / split / "m" / "merge.jsonl"
    write_jsonl(merged, answer_rows((262144000, "Größe."), (262144002, "two")))

    def convert():
        return COMMANDS["scripts/convert_vqav2_for_submission.py"].main(
            ["--dir", str(folder), "--split", split, "--ckpt", "m"]
        )

    return folder / "answers_upload" / split / "m.json", merged, convert


def test_vqav2_upload_answers_every_test_question(vqav2):
    upload, _, convert = vqav2
    assert convert() == 0
    assert [row["answer"] for row in json.loads(upload.read_text())] == ["größe", "", "2", ""]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:1], "question 262144002 has no answer"),
        (lambda rows: [*rows, rows[0]], "question 262144000 occurs more than once"),
        (lambda rows: [*rows, rows[0] | {"question_id": 5}], "question 5 is answered"),
    ],
)
def test_vqav2_upload_needs_one_answer_to_each_question(vqav2, damage, message, capsys):
    upload, merged, convert = vqav2
    write_jsonl(merged, damage(read_jsonl(merged)))
    assert convert() == 1
    assert message in capsys.readouterr().err
    assert not upload.exists()


def test_an_answers_file_that_is_cut_is_named_with_its_line(vqav2, capsys):
    _, merged, convert = vqav2
    merged.write_bytes(merged.read_bytes()[:-20])
    assert convert() == 1
    assert "merge.jsonl, line 2: not JSON" in capsys.readouterr().err


def test_gqa_predictions(tmp_path, capsys):
    source, target = tmp_path / "a.jsonl", tmp_path / "out" / "testdev_balanced_predictions.json"
    write_jsonl(source, answer_rows(("201", "Yes."), ("202", "")))
    argv = ["--src", str(source), "--dst", str(target)]
    assert COMMANDS["scripts/convert_gqa_for_eval.py"].main(argv) == 0
    assert json.loads(target.read_text()) == [
        {"questionId": "201", "prediction": "yes"},
        {"questionId": "202", "prediction": ""},
    ]
    write_jsonl(source, answer_rows(("201", "Yes."), ("201", "no")))
    assert COMMANDS["scripts/convert_gqa_for_eval.py"].main(argv) == 1
    assert_names(capsys.readouterr().err, "question 201 occurs more than once")


def test_vizwiz_upload(tmp_path):
    questions = benchmarks.vizwiz(tmp_path) / "llava_test.jsonl"
    answers, upload = tmp_path / "a.jsonl", tmp_path / "out" / "m.json"
    write_jsonl(answers, answer_rows((1, "a dog"), (0, "Unanswerable")))
    flags = ("--annotation-file", questions, "--result-file", answers, "--result-upload-file", upload)
    assert COMMANDS["scripts/convert_vizwiz_for_submission.py"].main(list(map(str, flags))) == 0
    assert json.loads(upload.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "dog"},
    ]


def test_mmbench_upload_takes_the_first_round(tmp_path):
    table = benchmarks.mmbench(tmp_path) / "mmbench_dev_20230712.tsv"
    ids = (241, 242, 1000242, 1000241, 2000241, 3000241)
    rows = [row | {"round_id": 0} for row in answer_rows(*((i, f"A{i}") for i in ids))]
    write_jsonl(tmp_path / "answers" / "m.jsonl", [*rows, rows[0] | {"round_id": 1, "text": "B"}])
    flags = ("--annotation-file", table, "--result-dir", tmp_path / "answers", "--experiment", "m")
    assert (
        COMMANDS["scripts/convert_mmbench_for_submission.py"].main(
            [*map(str, flags), "--upload-dir", str(tmp_path / "up")]
        )
        == 0
    )
    _, *cells = load_workbook(tmp_path / "up" / "m.xlsx").active.iter_rows(values_only=True)
    assert [row[6] for row in cells] == [f"A{i}" for i in ids]


def test_seed_prints_its_scores_and_writes_the_upload(tmp_path, capsys):
    annotations = benchmarks.seed(tmp_path) / "SEED-Bench.json"
    answers, upload = tmp_path / "a.jsonl", tmp_path / "m.jsonl"
    flags = ("--annotation-file", annotations, "--result-file", answers, "--result-upload-file", upload)
    write_jsonl(answers, answer_rows((101669, "A"), ("v_9", "A")))
    assert COMMANDS["scripts/convert_seed_for_submission.py"].main(list(map(str, flags))) == 1
    assert "1 question(s) of" in capsys.readouterr().err
    write_jsonl(answers, answer_rows((101669, "A"), (101670, "C"), ("v_9", "A")))
    assert COMMANDS["scripts/convert_seed_for_submission.py"].main(list(map(str, flags))) == 0
    assert "overall: 66.67%\nimage: 100.00%\nvideo: 0.00%\n" in capsys.readouterr().out
    assert read_jsonl(upload)[0] == {"question_id": "101669", "prediction": "A"}
