"""Small benchmarks, answered by a tiny random model through llava.eval.run and the published commands."""

import json

import benchmarks
import pytest
import tiny
from benchmarks import read_jsonl, write_jsonl
from messages import assert_names

import llava.model.builder
from llava.eval import run
from llava.published import COMMANDS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, and with all benchmarks below data."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_llava(folder / "model")
    for build in benchmarks.BUILDERS.values():
        build(folder / "data")
    return folder


def ask(world, command, questions, answers, *more, images="") -> list[dict]:
    """The answer rows that a command writes."""
    argv = [
        *("--model-path", world / "model", "--question-file", world / "data" / questions),
        *("--image-folder", world / "data" / images, "--answers-file", answers, "--max_new_tokens", 2, *more),
    ]
    assert COMMANDS[f"llava.eval.{command}"].main([str(part) for part in argv]) == 0
    return read_jsonl(answers)


def test_run_answers_scores_and_exports_every_benchmark(world, tmp_path):
    argv = ["--model-path", world / "model", "--data-root", world / "data", "--output-dir", tmp_path]
    names = ",".join(benchmarks.BUILDERS)
    assert run.main([*map(str, argv), "--tasks", names, "--max_new_tokens", "2"]) == 0
    results = {task["name"]: task for task in json.loads((tmp_path / "results.json").read_text())["tasks"]}
    assert set(results) == set(benchmarks.BUILDERS)
    server = {"vqav2", "vizwiz"}
    assert {name for name, result in results.items() if result["scores"] is None} == server
    with_files = {name for name, result in results.items() if result["submission"]}
    assert with_files == server | {"gqa", "mme", "mmbench", "mmbench_cn", "seed"}


def test_run_names_an_image_that_is_missing(world, tmp_path, monkeypatch, capsys):
    image = benchmarks.gqa(tmp_path) / "data" / "images" / "n161313.jpg"
    image.unlink()
    monkeypatch.setattr(
        llava.model.builder, "load_pretrained_model", None
    )  # the error comes before a model is needed
    argv = ["--model-path", world / "model", "--data-root", tmp_path, "--output-dir", tmp_path / "out"]
    assert run.main([*map(str, argv), "--tasks", "gqa"]) == 1
    assert_names(capsys.readouterr().err, "3 question(s)", "image", f"question 201307251: {image}")


def test_science_is_answered_and_scored(world, tmp_path, capsys):
    folder, answers = world / "data" / "scienceqa", tmp_path / "m.jsonl"
    rows = ask(
        *(world, "model_vqa_science", "scienceqa/llava_test_CQM-A.json", answers, "--single-pred-prompt"),
        images="scienceqa/images/test",
    )
    assert rows[1]["prompt"].startswith("<image>\nContext: ")
    assert rows[1]["prompt"].endswith(benchmarks.LETTER)
    texts = {"4": "A", "5": "I do not know.", "11": "The answer is B."}
    write_jsonl(answers, [row | {"text": texts[row["question_id"]]} for row in rows])
    outputs = tmp_path / "output.json", tmp_path / "result.json"
    argv = ["--base-dir", folder, "--result-file", answers, "--output-file", outputs[0]]
    argv = [*map(str, argv), "--output-result", str(outputs[1])]
    assert COMMANDS["llava.eval.eval_science_qa"].main(argv) == 0
    line = "Total: 3, Correct: 2, Accuracy: 66.67%, IMG-Accuracy: 50.00%\n"
    assert line in capsys.readouterr().out
    analysis, result = (json.loads(path.read_text()) for path in outputs)
    assert analysis["incorrect"] == [
        {
            "question_id": "5",
            "parsed_ans": "FAILED",
            "ground_truth": "C",
            "question": rows[1]["prompt"],
            "pred": "I do not know.",
            "is_multimodal": True,
        }
    ]
    assert result["results"] == {"4": 0, "5": -1, "11": 1}
    assert (result["correct"], result["count"], result["outputs"]["4"]) == (2, 3, "A")
    write_jsonl(answers, rows[:2])
    assert COMMANDS["llava.eval.eval_science_qa"].main(argv) == 1
    assert_names(capsys.readouterr().err, "question 11 has no answer")


def test_mmbench_is_answered_in_all_rounds_into_llavas_rows(world, tmp_path):
    flags = ("--single-pred-prompt", "--all-rounds", "--lang", "cn")
    rows = ask(world, "model_vqa_mmbench", "mmbench/mmbench_dev_20230712.tsv", tmp_path / "m.jsonl", *flags)
    assert len(rows) == 4 * 4 + 2 * 2
    first = [row for row in rows if row["question_id"] == 242]
    assert [(row["round_id"], row["options"], row["option_char"]) for row in first] == [
        (0, ["yes", "no"], ["A", "B"]),
        (1, ["no", "yes"], ["B", "A"]),
    ]
    assert first[1]["prompt"].endswith('Is it "big"?\nA. no\nB. yes\n请直接回答选项字母。')


def test_pope_is_answered_and_scored(world, tmp_path, capsys):
    folder, answers = world / "data" / "pope", tmp_path / "m.jsonl"
    questions = "pope/llava_pope_test.jsonl"
    rows = ask(world, "model_vqa_loader_pope", questions, answers, images="pope/val2014")
    write_jsonl(answers, [row | {"text": "Yes"} for row in rows])
    argv = ["--annotation-dir", folder / "coco", "--question-file", world / "data" / questions]
    argv = [*map(str, argv), "--result-file", str(answers)]
    assert COMMANDS["llava.eval.eval_pope"].main(argv) == 0
    printed = capsys.readouterr().out
    assert "Category: popular, # samples: 2\nAccuracy: 0.5\n" in printed
    assert printed.count("0.667, 0.500, 0.500, 1.000, 1.000\n") == 4  # three categories and their mean
    write_jsonl(answers, rows[:-1])
    assert COMMANDS["llava.eval.eval_pope"].main(argv) == 1
    assert_names(capsys.readouterr().err, "question 5 has no answer")


def test_textvqa_is_answered_and_scored_one_file_or_a_folder(world, tmp_path, capsys):
    answers = tmp_path / "m.jsonl"
    questions = "textvqa/llava_textvqa_val_v051_ocr.jsonl"
    rows = ask(world, "model_vqa", questions, answers, images="textvqa/train_images")
    write_jsonl(answers, [row | {"text": "Copenhagen"} for row in rows])
    annotations = ["--annotation-file", str(world / "data" / "textvqa" / "TextVQA_0.5.1_val.json")]
    for result in ("--result-file", str(answers)), ("--result-dir", str(tmp_path)):
        assert COMMANDS["llava.eval.eval_textvqa"].main([*annotations, *result]) == 0
        assert "m\nSamples: 2\nAccuracy: 30.00%\n" in capsys.readouterr().out
    write_jsonl(answers, rows[:1])
    assert COMMANDS["llava.eval.eval_textvqa"].main([*annotations, "--result-file", str(answers)]) == 1
    assert "1 question(s) of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What is IT?\nReference OCR token: a, b\nShort.", "what is it?"),
        ("Reference OCR token: a, b\nWhat is it?\nShort.", "what is it?"),
        ("What is it?\nShort.", "what is it?"),
        ("OCR tokens: a, b. Question: What is it? Short answer:", "what is it?"),
    ],
)
def test_textvqas_question_is_found_in_every_published_layout(prompt, question):
    from llava.eval.tasks.textvqa import question_of

    assert question_of(prompt) == question
