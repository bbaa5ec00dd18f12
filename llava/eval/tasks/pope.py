"""POPE: yes/no questions on whether an object is in the image; absent objects are chosen in three ways.

Source: Li et al., "Evaluating object hallucination in large vision-language models", 2023; the question
file is LLaVA-1.5's.
"""

from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import PopeAnswer, parse_yes_no, pope_table
from llava.eval.records import load_questions, read_jsonl
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import EVAL_ZIP, credit_of, images_in

CATEGORIES = ("random", "popular", "adversarial")
QUESTIONS = "llava_pope_test.jsonl"
LABEL_FOLDER, LABELS = "coco", "coco_pope_{}.json"
IMAGES = "val2014"
LABEL = {"image": str, "text": str, "label": str}


def load(folder: Path) -> list[dict]:
    """Return question rows with "category" and "answer" ("yes" or "no")."""
    return images_in(IMAGES, with_labels(read_questions(folder / QUESTIONS), folder / LABEL_FOLDER))


def read_questions(path: str | Path) -> list[dict]:
    """Read question rows, each with its "category"."""
    return load_questions(path, image=str, category=str)


def with_labels(rows: list[dict], folder: Path) -> list[dict]:
    """Return the rows with their "answer" from a folder of label files.

    Each label file numbers its lines from 1, so labels are found by category, image and question text.

    Raises:
        UserError: if a file is missing, or a question has no label.
    """
    labels = {}
    for category in CATEGORIES:
        for row in read_jsonl(folder / LABELS.format(category), LABEL):
            labels[category, row["image"], _words(row["text"])] = row["label"]
    keys = [(row["category"], row["image"], _words(row["text"])) for row in rows]
    if missing := [key for key in keys if key not in labels]:
        category, image, text = missing[0]
        raise UserError(
            f"{folder / LABELS.format(category)} has no label for {image}, {text!r} "
            f"({len(missing)} questions have none); fetch question and label files that belong together."
        )
    return [row | {"answer": labels[key]} for row, key in zip(rows, keys, strict=True)]


def _words(text: str) -> str:
    """Return the question without the instruction that follows it on a line of its own."""
    return text.split("\n")[0].strip()


def score(rows: list[dict], answers: dict) -> Scores:
    said = {question_id: parse_yes_no(text) for question_id, text in answers.items()}
    table = pope_table(PopeAnswer(row["category"], said[row["question_id"]], row["answer"]) for row in rows)
    return Scores(table, ("mean", "f1"), credit_of(rows, said))


_POPE = "from https://github.com/AoiDragon/POPE, folder output/coco"
TASK = Task(
    name="pope",
    title="POPE",
    folder="pope",
    needs=(
        File(QUESTIONS, EVAL_ZIP),
        *(File(f"{LABEL_FOLDER}/{LABELS.format(category)}", _POPE) for category in CATEGORIES),
        File(IMAGES, "unpack http://images.cocodataset.org/zips/val2014.zip"),
    ),
    load=load,
    score=score,
)
