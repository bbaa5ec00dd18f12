"""POPE in its real file format: labels are found by image and question; scores were computed by hand."""

import json

import pytest

from llava.eval.task import File, Task
from llava.eval.tasks.pope import CATEGORIES, TASK

ASKED = "Is there a {} in the image?"


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """Two images with two questions each in every category: there is a dog, and there is no cat."""
    questions, number = [], 0
    for category in CATEGORIES:
        labels = []
        for image in ("COCO_1.jpg", "COCO_2.jpg"):
            for name, label in (("dog", "yes"), ("cat", "no")):
                text = ASKED.format(name)
                labels.append({"question_id": len(labels) + 1, "image": image, "text": text, "label": label})
                instruction = "\nAnswer the question using a single word or phrase."
                questions.append(
                    {"question_id": number, "image": image, "text": text + instruction, "category": category}
                )
                number += 1
        write_jsonl(tmp_path / f"coco/coco_pope_{category}.json", labels[::-1])
    write_jsonl(tmp_path / "llava_pope_test.jsonl", questions)
    return tmp_path


def test_questions_get_their_labels_by_image_and_text(folder):
    rows = TASK.load(folder)
    assert [row["answer"] for row in rows] == ["yes", "no"] * 6
    assert rows[0]["image"] == "val2014/COCO_1.jpg"
    assert rows[0]["text"].endswith("\nAnswer the question using a single word or phrase.")


def test_the_headline_is_the_mean_f1_of_the_three_categories(folder):
    rows = TASK.load(folder)
    answers = {row["question_id"]: row["answer"].capitalize() for row in rows}
    answers[4] = "No, there is not."  # the question on a dog in popular: recall 1/2, F1 2/3
    answers[9] = "yes"  # the question on a cat in adversarial: precision 2/3, F1 4/5
    scores = TASK.score(rows, answers)
    part, measure = scores.headline
    assert scores.table[part][measure].value == pytest.approx((1 + 2 / 3 + 4 / 5) / 3)
    assert scores.table["popular"]["accuracy"].value == pytest.approx(3 / 4)
    assert [i for i, credit in scores.credit.items() if credit == 0] == [4, 9]


def test_labels_of_another_edition_are_refused(folder):
    write_jsonl(folder / "coco/coco_pope_popular.json", [])
    with pytest.raises(ValueError, match=r"coco_pope_popular\.json.*COCO_1\.jpg.*'Is there a dog"):
        TASK.load(folder)


def test_all_missing_files_of_a_task_are_named_with_their_source(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "here.json").touch()
    needs = (File("here.json", "a"), File("a/b.json", "from https://b"), File("images", "unpack c.zip"))
    lines = Task("toy", "Toy", "toy", needs, load=list).missing(tmp_path)
    assert lines == [
        f"toy: {tmp_path}/toy/a/b.json is missing; from https://b",
        f"toy: {tmp_path}/toy/images is missing; unpack c.zip",
    ]
