"""Benchmarks with a judge, a similarity score or several images: real file formats, scores by hand."""

import json

import pytest
from benchmarks import LETTER, WORD, answered, read_jsonl, values, write_json
from pyarrow import parquet

from llava.eval.metrics import llava_bench_table, mmvet_table, parse_correctness, parse_score_pair
from llava.eval.metrics.mmmu import guess_option
from llava.eval.tasks import TASKS, llava_bench, mmmu, mmvet, qbench

# ---- LLaVA-Bench ----


def test_llava_bench_asks_the_judge_with_context_and_gpt4s_answer_first(load):
    row = load("llava_bench")[2]
    assert row["text"] == "What is 2, größer?"
    assert llava_bench.review_prompt(row, "mine").startswith(
        "[Context]\nFirst.\nSecond.\n\n[Question]\nWhat is 2, größer?\n\n"
        "[Assistant 1]\nIt is 2.\n\n[End of Assistant 1]\n\n[Assistant 2]\nmine\n\n[End of Assistant 2]\n\n"
        "[System]\nWe would like to request your feedback"
    )


def test_llava_bench_scores_relative_to_gpt4_by_hand(load):
    rows = load("llava_bench")
    replies = {"one": "8 6\nWell, 9 9.", "two": "10, 5.5", "three": "Both are good."}
    seen = []

    def ask(prompt, system):
        seen.append(system)
        return next(reply for answer, reply in replies.items() if f"[Assistant 2]\n{answer}\n" in prompt)

    scores = TASKS["llava_bench"].judge(rows, answered(rows, *replies), ask)
    assert values(scores) == {
        "overall": {"relative": pytest.approx(11.5 / 18), "points": 5.75, "GPT-4's points": 9},
        "conversation": {"relative": 0.75, "points": 6, "GPT-4's points": 8},
        "detail": {"relative": 0.55, "points": 5.5, "GPT-4's points": 10},
    }
    assert scores.unparsed == 1
    assert scores.credit == {0: 0.75, 1: 0.55}
    assert set(seen) == {"You are a helpful and precise assistant for checking the quality of the answer."}
    low, value = scores.table["overall"]["relative"].low, scores.table["overall"]["relative"].value
    assert low == pytest.approx(0.55)  # the resample with the detail question twice
    assert low < value


def test_llava_bench_refuses_a_judge_that_never_scores(load):
    rows = load("llava_bench")
    with pytest.raises(ValueError, match=r"--judge-model.*question 0.*'Good\.'"):
        TASKS["llava_bench"].judge(rows, answered(rows, "", "", ""), lambda prompt, system: "Good.")


@pytest.mark.parametrize(
    ("review", "pair"),
    [
        ("8 7\nAssistant 1 ...", (8, 7)),
        ("\n 7.5, 10 \n", (7.5, 10)),
        ("8 7 6", None),
        ("Scores: 8 7", None),
        ("0 5", None),
        ("8 11", None),
        ("", None),
    ],
)
def test_a_review_begins_with_a_line_of_two_scores(review, pair):
    assert parse_score_pair(review) == pair


def test_llava_bench_refuses_categories_it_does_not_know():
    with pytest.raises(ValueError, match="'chat'.*conv, detail, complex"):
        llava_bench_table([llava_bench.LlavaBenchAnswer("chat", 8, 8)])


# ---- MM-Vet ----


def test_mmvet_asks_the_judge_to_complete_a_table(load):
    row = load("mmvet")[0]
    assert row["text"] == "What is x in the equation?"
    prompt = mmvet.review_prompt(row, "x = -5")
    assert prompt.endswith(" | 1.0\n\nWhat is x in the equation? | -1 <AND> -5 | x = -5 | ")
    assert prompt.count("\nCan you explain this meme? | This meme is") == 2


def test_mmvet_scores_by_hand_and_writes_the_evaluators_file(load, tmp_path):
    rows = load("mmvet")
    replies = {"x = -5": "0.5", "größer": "0.8 (nearly)", "": "I cannot say."}
    answers = answered(rows, *replies)

    def ask(prompt):
        return replies[prompt.split(" | ")[-2]]

    scores = TASKS["mmvet"].judge(rows, answers, ask)
    assert {part: row["score"] for part, row in values(scores).items()} == {
        "overall": pytest.approx(1.3 / 3),
        "rec": pytest.approx(0.4),
        "ocr": 0.5,
        "know": 0.8,
        "gen": 0.8,
        "math": 0.5,
        "only ocr, math": 0.5,
        "only rec": 0,
        "only rec, know, gen": 0.8,
    }
    assert scores.unparsed == 1
    (path,) = TASKS["mmvet"].export(rows, answers, tmp_path)
    assert json.loads(path.read_text()) == {"v1_0": "x = -5", "v1_1": "größer", "v1_2": ""}


@pytest.mark.parametrize(
    ("reply", "score"), [("1.0", 1), (" 0\n", 0), ("1.1", None), ("-0.1", None), ("", None), ("nan", None)]
)
def test_a_correctness_is_the_number_that_a_reply_begins_with(reply, score):
    assert parse_correctness(reply) == score


def test_mmvet_refuses_capabilities_it_does_not_know():
    with pytest.raises(ValueError, match="'fly'.*rec"):
        mmvet_table([mmvet.MMVetAnswer(1, ["rec", "fly"])])


# ---- Q-Bench ----


def test_qbench_asks_in_both_languages(load):
    assert load("qbench")[1]["text"] == (
        "Is it dark?\nChoose between one of the options as follows:\nA. Yes\nB. No\n"
    )
    assert load("qbench_zh")[1]["text"] == "Is it dark?\\在下列选项中选择一个:\nA. Yes\nB. No\n"


def test_qbench_scores_a_letter_or_an_options_text(load):
    rows = load("qbench")
    scores = TASKS["qbench"].score(rows, answered(rows, "B. Blurry", "yes.", "The colour is off"))
    assert {part: row["accuracy"] for part, row in values(scores).items()} == {
        "overall": pytest.approx(2 / 3),
        "type 0": 1,
        "type 1": 0,
        "type 2": 1,
        "concern 0": 0.5,
        "concern 1": 1,
    }
    assert scores.unparsed == 1


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("B. No", "B"), ("NO.", "B"), ("C", None), ("C. Maybe", None), ("", None), ("Not", None)],
)
def test_qbench_takes_no_letter_that_a_question_does_not_offer(text, letter):
    assert qbench.option_of(text, ["Yes", "No"]) == letter


def test_qbench_test_has_no_answers_and_is_submitted(load, tmp_path):
    rows = load("qbench_test")
    assert "answer" not in rows[0]
    assert TASKS["qbench_test"].score is None
    (path,) = TASKS["qbench_test"].export(rows, answered(rows, "A", "größer", ""), tmp_path)
    assert read_jsonl(path)[1] == rows[1]["published"] | {"response": "größer"}


def test_qbench_refuses_an_answer_that_is_no_option(load, tmp_path):
    load("qbench")
    path = tmp_path / "qbench" / "llvisionqa_dev.json"
    rows = json.loads(path.read_text())
    write_json(path, [rows[0], rows[1] | {"correct_ans": "Perhaps"}])
    with pytest.raises(ValueError, match=r"llvisionqa_dev.json, question 1: .*correct_ans"):
        TASKS["qbench"].load(path.parent)


# ---- DocVQA ----


def test_docvqa_scores_by_hand(load):
    rows = load("docvqa")
    assert rows[0]["text"] == f"What is the ‘actual’ value?\n{WORD}"
    # one edit in the twelve characters of "müller & co.", one in the four of "rome", and an empty answer
    scores = TASKS["docvqa"].score(rows, answered(rows, "", "MÜLLER & CO.", "Rom"))
    second = 1 - 1 / len("müller & co.")
    assert {part: row["anls"] for part, row in values(scores).items()} == {
        "overall": pytest.approx((0 + second + 0.75) / 3),
        "figure/diagram": 0,
        "handwritten": pytest.approx(second),
        "layout": 0.375,
    }


def test_docvqa_takes_the_older_file_without_question_types(load, tmp_path):
    load("docvqa")
    path = tmp_path / "docvqa" / "val_v1.0_withQT.json"
    published = json.loads(path.read_text())
    for row in published["data"]:
        del row["question_types"]
    write_json(path.with_name("val_v1.0.json"), published)
    assert "layout" in TASKS["docvqa"].load(path.parent)[0]["question_types"]  # the newer file is preferred
    path.unlink()
    assert TASKS["docvqa"].missing(tmp_path) == []
    rows = TASKS["docvqa"].load(path.parent)
    scores = TASKS["docvqa"].score(rows, answered(rows, "0.28", "Mueller", "Rome"))
    assert values(scores) == {"overall": {"anls": 1}}


def test_docvqa_test_submits_answers_by_id_without_a_last_period(load, tmp_path):
    rows = load("docvqa_test")
    (path,) = TASKS["docvqa_test"].export(rows, answered(rows, "Größe 4.5.", ""), tmp_path)
    assert json.loads(path.read_text()) == [
        {"questionId": 57344, "answer": "Größe 4.5"},
        {"questionId": 57345, "answer": ""},
    ]


def test_docvqa_refuses_a_file_of_another_kind(load, tmp_path):
    load("docvqa")
    path = tmp_path / "docvqa" / "val_v1.0_withQT.json"
    write_json(path, [])
    with pytest.raises(ValueError, match='DocVQA.*"data"'):
        TASKS["docvqa"].load(path.parent)


# ---- OCRBench ----


def test_ocr_bench_counts_points_by_hand(load):
    rows = load("ocr_bench")
    assert rows[0]["text"] == f"what is written in the image?\n{WORD}"
    texts = ("It says “centre”.", "cafe", "about 4,7 cm", "\\frac{a}{B} = 1")
    scores = TASKS["ocr_bench"].score(rows, answered(rows, *texts))
    assert {part: row["points"] for part, row in values(scores).items()} == {
        "overall": 3,
        "Text Recognition": 1,
        "Regular Text Recognition": 1,
        "Artistic Text Recognition": 0,
        "Doc-oriented VQA": 1,
        "Handwritten Mathematical Expression Recognition": 1,
    }
    assert scores.points == ("points",)


# ---- MMMU ----


def test_mmmu_shows_every_image_where_it_is_mentioned(load):
    first, open_question, several = load("mmmu")
    assert first["text"] == f"What is <image>?\n(A) $6\n(B) it's $7\n\n{LETTER}"
    assert open_question["text"] == f"<image>\nHow much?\n{WORD}"
    assert several["text"] == f"Which fits <image>?\n(A) <image>\n(B) <image>\n(C) neither\n\n{LETTER}"
    red, blue, again = several["image"]
    assert red == again == first["image"][0] != blue


def test_mmmu_scores_by_hand_and_counts_guesses(load):
    rows = load("mmmu")
    scores = TASKS["mmmu"].score(rows, answered(rows, "(B)", "It is 8000 dollars.", "no idea"))
    guessed = float(guess_option(["A", "B", "C"], "validation_Art_Theory_10") == "A")
    assert {part: row["accuracy"] for part, row in values(scores).items()} == {
        "overall": pytest.approx((2 + guessed) / 3),
        "Art and Design": guessed,
        "Art_Theory": guessed,
        "Business": 1,
        "Accounting": 1,
    }
    assert scores.unparsed == 1


def test_mmmu_refuses_a_question_whose_image_is_not_there(load, tmp_path):
    load("mmmu")
    path = tmp_path / "MMMU" / "Art_Theory" / "validation-00000-of-00001.parquet"
    (row,) = parquet.read_table(path).to_pylist()
    with pytest.raises(ValueError, match="validation_Art_Theory_10.*image 2"):
        mmmu.question_row(row | {"image_2": None})
