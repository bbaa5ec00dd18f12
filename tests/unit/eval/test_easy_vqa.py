"""easy-VQA's scores: counts that were computed by hand."""

import json

import pytest

from llava.eval.tasks.easy_vqa import score
from llava.published import COMMANDS

COLOR, SHAPE, NEW = "What color is it?", "What shape is it?", "Which color?"
TRAIN = [{"text": COLOR, "answer": answer} for answer in ("red", "red", "blue")] + [
    {"text": SHAPE, "answer": "circle"}
] * 4
QUESTIONS = [
    {"question_id": 1, "text": COLOR, "answer": "red", "category": "color"},
    {"question_id": 2, "text": COLOR, "answer": "blue", "category": "color"},
    {"question_id": 3, "text": SHAPE, "answer": "circle", "category": "shape"},
    {"question_id": 4, "text": SHAPE, "answer": "triangle", "category": "shape"},
    {"question_id": 5, "text": NEW, "answer": "circle", "category": "color"},
]
ANSWERS = [
    {"question_id": i, "text": text}
    for i, text in enumerate(["Red.", "blue", "circle", "circle", "red"], start=1)
]


def counts(rows):
    return {key: (row["correct"], row["total"]) for key, row in rows.items()}


def test_score_counts_the_model_by_category():
    scores = score(QUESTIONS, ANSWERS, TRAIN)
    assert counts(scores["model"]) == {"overall": (3, 5), "color": (2, 3), "shape": (1, 2)}
    assert scores["model"]["overall"]["accuracy"] == 0.6
    assert scores["model"]["overall"]["low"] < 0.6 < scores["model"]["overall"]["high"]


def test_question_only_takes_each_texts_best_answer_and_falls_back_to_the_majority():
    # red for the colour text, circle for the shape text and for a text that is not in training
    assert counts(score(QUESTIONS, ANSWERS, TRAIN)["question_only"]) == {
        "overall": (3, 5),
        "color": (2, 3),
        "shape": (1, 2),
    }


def test_majority_gives_one_answer_to_all():
    assert counts(score(QUESTIONS, ANSWERS, TRAIN)["majority"]) == {
        "overall": (2, 5),
        "color": (1, 3),
        "shape": (1, 2),
    }


def test_baselines_do_not_depend_on_the_order_of_the_training_rows():
    tied = [{"text": COLOR, "answer": answer} for answer in ("red", "blue")]
    assert score(QUESTIONS, ANSWERS, tied) == score(QUESTIONS, ANSWERS, tied[::-1])


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        (QUESTIONS, ANSWERS[:-1], "question 5.*no answer"),
        (QUESTIONS, [*ANSWERS, ANSWERS[0]], "question 1.*more than once.*answers"),
        ([*QUESTIONS, QUESTIONS[1]], ANSWERS, "question 2.*more than once.*question file"),
        (QUESTIONS[:-1], ANSWERS, "question 5.*answered"),
        ([{**QUESTIONS[0], "category": "size"}, *QUESTIONS[1:]], ANSWERS, "question 1: category"),
    ],
)
def test_score_refuses_rows_that_do_not_pair_up(questions, answers, message):
    with pytest.raises(ValueError, match=message):
        score(questions, answers, TRAIN)


def test_command_line_prints_a_table_and_writes_the_scores(tmp_path, capsys):
    argv = []
    for flag, rows in (("question", QUESTIONS), ("answers", ANSWERS), ("train-question", TRAIN)):
        path = tmp_path / f"{flag}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv += [f"--{flag}-file", str(path)]
    assert (
        COMMANDS["llava.eval.eval_easy_vqa"].main([*argv, "--output", str(tmp_path / "out" / "scores.json")])
        == 0
    )
    assert "3/5" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == score(QUESTIONS, ANSWERS, TRAIN)
    argv[argv.index("--answers-file") + 1] = str(tmp_path / "none.jsonl")
    assert COMMANDS["llava.eval.eval_easy_vqa"].main(argv) == 1
    assert "none.jsonl: no such file" in capsys.readouterr().err
