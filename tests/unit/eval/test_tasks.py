"""Benchmarks in their real file formats: prompts, scores by hand, submissions, inconsistent files."""

import base64
import json
import sys

import benchmarks
import pytest
from benchmarks import LETTER, WORD, answered, read_jsonl, values, write_json, write_jsonl
from openpyxl import load_workbook

from llava.eval.run import limited
from llava.eval.tasks import TASKS

# ---- VQAv2, VizWiz, TextVQA ----


def test_vqav2_submits_an_empty_answer_outside_test_dev(load, tmp_path):
    rows = load("vqav2")
    assert [row["text"] for row in rows] == [f"How many?\n{WORD}", f"Is the ball flying?\n{WORD}"]
    (path,) = TASKS["vqav2"].export(rows, answered(rows, "Two.", "YES, it is\n"), tmp_path)
    assert json.loads(path.read_text()) == [
        {"question_id": 262144000, "answer": "yes it is"},
        {"question_id": 262144001, "answer": ""},
        {"question_id": 262144002, "answer": "2"},
        {"question_id": 262144003, "answer": ""},
    ]


def test_vqav2_val_scores_by_hand(load):
    rows = load("vqav2_val")
    assert rows[0]["text"] == f"What is it, 0?\n{WORD}"
    scores = TASKS["vqav2_val"].score(rows, answered(rows, "Yes.", "two", ""))
    # two people agree: each of them has one other match, all others have two: (2 * 1/3 + 8 * 2/3) / 10
    assert values(scores) == {
        "overall": {"accuracy": pytest.approx((1 + 0.6 + 0) / 3)},
        "yes/no": {"accuracy": pytest.approx(1)},
        "number": {"accuracy": pytest.approx(0.6)},
        "other": {"accuracy": 0},
    }


def test_vizwiz_submits_answers_by_file_name(load, tmp_path):
    rows = load("vizwiz")
    assert rows[0]["text"].split("\n")[1:] == [
        "When the provided information is insufficient, respond with 'Unanswerable'.",
        WORD,
    ]
    (path,) = TASKS["vizwiz"].export(rows, answered(rows, "Unanswerable", "a Größe"), tmp_path)
    assert json.loads(path.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "größe"},
    ]


def test_vizwiz_val_is_asked_as_test_is_and_scored_by_hand(load):
    asked, rows = load("vizwiz")[0], load("vizwiz_val")
    assert rows[0]["text"].split("\n")[1:] == asked["text"].split("\n")[1:]
    scores = TASKS["vizwiz_val"].score(rows, answered(rows, "Unanswerable", "Soda"))
    assert values(scores)["overall"]["accuracy"] == pytest.approx((1 + 9 / 3 / 10) / 2)


def test_textvqa_tells_an_images_questions_apart(load):
    rows = load("textvqa")
    assert [row["question_id"] for row in rows] == [34603, 34602]
    assert "\nReference OCR token: DAKOTA, Ünï\n" in rows[0]["text"]
    scores = TASKS["textvqa"].score(rows, answered(rows, "Copenhagen", "Dakota."))
    assert values(scores) == {"overall": {"accuracy": pytest.approx((0.6 + 1) / 2)}}


@pytest.mark.parametrize("change", [lambda rows: rows[:1], lambda rows: [*rows, rows[0]]])
def test_textvqa_refuses_a_cut_or_doubled_question_file(load, tmp_path, change):
    load("textvqa")
    path = tmp_path / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl"
    write_jsonl(path, change(read_jsonl(path)))
    with pytest.raises(ValueError, match="1 question.*not asked|more than once"):
        TASKS["textvqa"].load(path.parent)


# ---- PrismVQA ----


def test_prismvqa_weighs_families_alike_and_shows_chance(load):
    rows = load("prismvqa")
    assert rows[0]["text"] == f"How many circles are there?\n{WORD}"
    scores = TASKS["prismvqa"].score(rows, answered(rows, "3.", "yes", "Top left", "red"))
    assert values(scores) == {
        "mean": {
            "accuracy": pytest.approx((1 + 0 + 0.5) / 3),
            "chance": pytest.approx((1 / 6 + 1 / 2 + 3 / 16) / 3),
        },
        "count": {"accuracy": 1, "chance": pytest.approx(1 / 6)},
        "exist": {"accuracy": 0, "chance": 0.5},
        "locate": {"accuracy": 0.5, "chance": 3 / 16},
    }
    assert scores.headline == ("mean", "accuracy")
    mean, locate = (scores.table[part]["accuracy"] for part in ("mean", "locate"))
    # only locate has two questions, so only its score varies, and the mean of three varies a third as much
    assert (locate.low, locate.high, locate.total) == (0, 1, 2)
    assert (mean.low, mean.high, mean.total) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 4)


@pytest.mark.parametrize("key", ["answer", "family", "chance"])
def test_prismvqa_refuses_rows_of_another_kind(load, tmp_path, key):
    load("prismvqa")
    path = tmp_path / "prismvqa" / "test.jsonl"
    write_jsonl(path, [{k: v for k, v in row.items() if k != key} for row in read_jsonl(path)])
    with pytest.raises(ValueError, match=f"question 0 has no {key}"):
        TASKS["prismvqa"].load(path.parent)


# ---- GQA ----


def test_gqa_scores_by_hand_and_writes_the_tools_predictions(load, tmp_path):
    rows = load("gqa")
    answers = answered(rows, "No.", "Girl", "right")
    assert values(TASKS["gqa"].score(rows, answers)) == {
        "overall": {"accuracy": pytest.approx(2 / 3)},
        "open": {"accuracy": 1},
        "binary": {"accuracy": 0.5},
    }
    (path,) = TASKS["gqa"].export(rows, answers, tmp_path)
    assert path.name == "testdev_balanced_predictions.json"
    assert json.loads(path.read_text())[0] == {"questionId": "201307251", "prediction": "no"}


def test_gqa_refuses_files_that_do_not_belong_together(load, tmp_path):
    rows, folder = load("gqa"), tmp_path / "gqa"
    write_jsonl(folder / "llava_gqa_testdev_balanced.jsonl", rows[1:])
    with pytest.raises(ValueError, match="1 question.*questions.json.*2013072"):
        TASKS["gqa"].load(folder)
    write_json(folder / "data" / "testdev_balanced_questions.json", {})
    with pytest.raises(ValueError, match="balanced_questions.json.*201640614"):
        TASKS["gqa"].load(folder)


# ---- multiple choice ----


def test_scienceqa_scores_by_hand_with_the_images_apart(load):
    rows = load("scienceqa")
    assert rows[1]["text"] == (
        f"<image>\nContext: N/A\nWhich is 5?\nA. 1\nB. 2\nC. 3\n{LETTER}"  # as in LLaVA-1.5
    )
    assert "image" not in rows[0]
    scores = TASKS["scienceqa"].score(rows, answered(rows, "A", "The answer is C.", "E"))
    assert scores.headline == ("IMG", "accuracy")
    assert scores.unparsed == 1  # the last question has four options
    found = {part: row["accuracy"] for part, row in values(scores).items()}
    assert found["overall"] == pytest.approx(2 / 3)
    assert (found["IMG"], found["TXT"], found["NO"], found["SOC"], found["G7-12"]) == (0.5, 1, 1, 0, 1)


def test_scienceqa_refuses_a_question_file_that_is_cut(load, tmp_path):
    load("scienceqa")
    path = tmp_path / "scienceqa" / "llava_test_CQM-A.json"
    records = json.loads(path.read_text())
    write_json(path, records[:-1])
    with pytest.raises(ValueError, match="1 question.*pid_splits.json.*11"):
        TASKS["scienceqa"].load(path.parent)
    path.write_text(json.dumps(records)[:-9])
    with pytest.raises(ValueError, match="llava_test_CQM-A.json.*not JSON"):
        TASKS["scienceqa"].load(path.parent)


def test_seed_scores_by_hand_and_submits_under_the_benchmarks_ids(load, tmp_path):
    rows = load("seed")
    answers = answered(rows, "A", "C. Three", "")
    scores = TASKS["seed"].score(rows, answers)
    assert {part: row["accuracy"] for part, row in values(scores).items()} == {
        "overall": pytest.approx(2 / 3),
        "image": 1,
        "video": 0,
        "Action Recognition": 0,
        "Instances Counting": 1,
        "Scene Understanding": 1,
    }
    assert scores.unparsed == 1
    (path,) = TASKS["seed"].export(rows, answers, tmp_path)
    assert read_jsonl(path) == [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "101670", "prediction": "C. Three"},
        {"question_id": "v_9", "prediction": ""},
    ]


def test_mmbench_asks_hint_question_options_and_instruction(load):
    rows = load("mmbench")
    assert rows[0]["text"] == f"Which?\nA. a, left\nB. b\nC. c\nD. d\n{LETTER}"
    assert rows[1]["text"] == f'Zwei\nZeilen, größer\nIs it "big"?\nA. yes\nB. no\n{LETTER}'
    assert rows[3]["text"].startswith("Which?\nA. b\n")
    assert load("mmbench_cn")[0]["text"].endswith("\nD. d\n请直接回答选项字母。")


def test_mmbench_counts_a_question_that_is_right_under_every_rotation(load, tmp_path):
    rows = load("mmbench")
    answers = {row["question_id"]: row["answer"] for row in rows} | {
        1000242: "C"
    }  # this question has two options
    scores = TASKS["mmbench"].score(rows, answers)
    assert values(scores) == {
        "overall": {"circular": 0.5, "vanilla": 1},
        "location": {"circular": 1, "vanilla": 1},
        "logic": {"circular": 0, "vanilla": 1},
        "perception": {"circular": 0.5, "vanilla": 1},
    }
    assert scores.unparsed == 1


def test_mmbench_submits_the_question_file_with_a_column_of_predictions(load, tmp_path):
    rows = load("mmbench")
    texts = {
        row["question_id"]: text
        for row, text in zip(rows, ("A", "", "=1+1", "größer\x0b", "B", "C"), strict=True)
    }
    (path,) = TASKS["mmbench"].export(rows, texts, tmp_path)
    header, *cells = load_workbook(path, data_only=True).active.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert cells[0] == (241, "Which?", "a, left", "b", "c", "d", "A", "A", "dev")
    assert [row[6] for row in cells] == ["A", None, "=1+1", "größer", "B", "C"]
    assert cells[1][4] is None  # it has no third option


def test_mmbench_says_ahead_that_the_spreadsheets_library_is_missing(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match="openpyxl.*pip install"):
        load("mmbench")


def test_mmbench_refuses_a_file_that_is_cut_and_a_row_without_an_image(load, tmp_path):
    load("mmbench")
    path = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    text = path.read_text()
    path.write_text(text[: text.rfind("perception")])
    with pytest.raises(ValueError, match="row 6: columns"):
        TASKS["mmbench"].load(path.parent)
    path.write_text(text.replace(benchmarks.encoded_image(), "", 1))
    with pytest.raises(ValueError, match="question 241: .*base64"):
        TASKS["mmbench"].load(path.parent)


def write_mmbench(folder, images: dict, line_end="\r\n"):
    """Writes questions with two options, whose image column is given by their index."""
    names = ("index", "question", "A", "B", "answer", "category", "l2-category", "image", "split")
    rows = [
        dict(zip(names, (i, "Which?", "red", "blue", "A", "c", "l", x, "dev"), strict=True))
        for i, x in images.items()
    ]
    lines = ["\t".join(names), *("\t".join(str(row[name]) for name in names) for row in rows)]
    folder.mkdir(exist_ok=True)
    (folder / "mmbench_dev_20230712.tsv").write_bytes(line_end.join([*lines, ""]).encode())
    return folder


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_an_image_of_mmbench_may_be_the_index_of_the_row_that_has_it(tmp_path, line_end):
    encoded = benchmarks.encoded_image()
    images = {5: "1000241", 241: encoded, 1000241: "241", 2000241: "1000241", 3000241: "5", 7: encoded}
    rows = TASKS["mmbench"].load(write_mmbench(tmp_path / "mmbench", images, line_end))
    assert [row["question_id"] for row in rows] == list(images)
    assert {row["image"] for row in rows} == {base64.b64decode(encoded)}
    assert len({id(row["image"]) for row in rows[:5]}) == 1, "rows hold one picture, not a copy each"
    assert [row["group"] for row in rows] == [5, 241, 241, 241, 241, 7]
    scores = TASKS["mmbench"].score(rows, {row["question_id"]: "A" for row in rows})
    assert values(scores)["overall"] == {"circular": 1, "vanilla": 1}


def test_a_long_chain_of_mmbench_rows_ends_at_its_picture(tmp_path):
    images = {0: benchmarks.encoded_image(), **{i: i - 1 for i in range(1, 5000)}}
    rows = TASKS["mmbench"].load(write_mmbench(tmp_path / "mmbench", dict(reversed(images.items()))))
    assert len({id(row["image"]) for row in rows}) == 1


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({1: "2", 2: "9"}, "question 1.*row 9"),
        ({1: "1"}, "question 1.*rows 1 "),
        ({1: "2", 2: "3", 3: "2"}, "question 1.*rows 1, 2, 3"),
        ({1: "@@"}, "question 1: .*base64"),
        ({"x1": ""}, "row 1.*index.*'x1'"),
    ],
)
def test_mmbench_names_the_row_whose_image_is_nowhere(tmp_path, images, says):
    with pytest.raises(ValueError, match=says):
        TASKS["mmbench"].load(write_mmbench(tmp_path / "mmbench", images))


# ---- MME ----


def test_mme_counts_points_by_hand(load):
    rows = load("mme")
    assert rows[0]["text"] == f"Is there a existence 0006?\n{WORD}"
    assert [row["answer"] for row in rows] == ["yes", "no"] * 4
    answers = answered(rows, "Yes", "No.", "yes", "Yes", "No", "no", "maybe", "NO")
    scores = TASKS["mme"].score(rows, answers)
    assert values(scores) == {
        "existence": {"accuracy": 3 / 4, "accuracy_plus": 1 / 2, "score": 125},
        "OCR": {"accuracy": 1 / 2, "accuracy_plus": 0, "score": 50},
        "perception": {"score": 175},
    }
    assert (scores.headline, scores.unparsed) == (("perception", "score"), 1)


def test_mme_exports_the_files_that_calculation_py_reads(load, tmp_path):
    rows = load("mme")
    texts = ("Yes", "No\tor\nso", "", "Ja, größer", *["No"] * 4)
    shuffled = [rows[i] for i in (4, 0, 2, 6, 1, 3, 5, 7)]
    paths = TASKS["mme"].export(shuffled, answered(rows, *texts), tmp_path)
    assert sorted(path.name for path in paths) == ["OCR.txt", "existence.txt"]
    lines = (tmp_path / "eval_tool" / "existence.txt").read_text().splitlines()
    assert lines == [
        "0006.txt\tIs there a existence 0006?  Please answer yes or no.\tYes\tYes",
        "0006.txt\tIs there another existence 0006?  Please answer yes or no.\tNo\tNo or so",
        "0021.txt\tIs there a existence 0021?  Please answer yes or no.\tYes\t",
        "0021.txt\tIs there another existence 0021?  Please answer yes or no.\tNo\tJa, größer",
    ]


def test_mme_refuses_a_question_that_the_benchmark_does_not_ask(load, tmp_path):
    load("mme")
    path = tmp_path / "MME" / "MME_Benchmark_release_version" / "existence" / "0006.txt"
    path.write_text("Is there a cat? Please answer yes or no.\tYes\n")
    with pytest.raises(ValueError, match="0006.txt.*'Is there a existence 0006"):
        TASKS["mme"].load(tmp_path / "MME")


@pytest.mark.parametrize(("name", "size"), [("mme", 2), ("mmbench", 4)])
def test_a_limit_keeps_what_is_scored_together(load, name, size):
    rows = limited(load(name), 1)
    assert len(rows) == size
    assert values(TASKS[name].score(rows, {row["question_id"]: row["answer"] for row in rows}))


def test_every_task_has_a_way_to_its_score():
    assert all(task.score or task.judge or (task.export and task.submit_to) for task in TASKS.values())
