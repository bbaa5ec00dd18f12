"""VQAv2: open questions on COCO images with ten people's answers; val is scored here, test-dev by a server.

Source: Goyal et al., "Making the V in VQA matter", 2017; the question files are LLaVA-1.5's.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from llava.eval.json_files import ID, lines_of
from llava.eval.metrics import normalize_vqa_answer, vqa_accuracy
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import (
    EVAL_ZIP,
    SINGLE_WORD,
    annotations_of,
    images_in,
    one_file,
    open_answer_scores,
    read_json,
)

TEST_DEV = "llava_vqav2_mscoco_test-dev2015.jsonl"
TEST = "llava_vqav2_mscoco_test2015.jsonl"
VAL_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
QUESTION = {"question_id": ID, "image_id": int, "question": str}
ANNOTATION = {"question_id": ID, "answers": [{"answer": str}, ...], "answer_type": str}
VAL_ANSWERS = "v2_mscoco_val2014_annotations.json"


def load(folder: Path) -> list[dict]:
    """Read test-dev; each row has the ids of all test questions as "test_ids", the same list object."""
    test_ids = read_test_ids(folder)
    rows = images_in("test2015", load_questions(folder / TEST_DEV, image=str))
    return [row | {"test_ids": test_ids} for row in rows]


def read_test_ids(folder: Path) -> list:
    """Read the ids of all test questions."""
    return [line.row({"question_id": ID})["question_id"] for line in lines_of(folder / TEST)]


def submission(answers: dict, test_ids: Iterable[int]) -> str:
    """Return the server's file; it needs all test questions, so those outside test-dev get "" as answer."""
    return json.dumps(
        [{"question_id": i, "answer": normalize_vqa_answer(answers.get(i, ""))} for i in test_ids]
    )


def load_val(folder: Path) -> list[dict]:
    """Read val with LLaVA-1.5's prompts for test-dev; rows have "answer" (ten texts) and "answer_type"."""
    published = read_json(folder / VAL_ANSWERS, {"annotations": [ANNOTATION]})["annotations"]
    annotations = {row["question_id"]: row for row in published}
    questions = read_json(folder / VAL_QUESTIONS, {"questions": [QUESTION]})["questions"]
    ids = [question["question_id"] for question in questions]
    found = annotations_of(ids, annotations, folder / VAL_ANSWERS)
    return [
        {
            "question_id": question["question_id"],
            "image": f"val2014/COCO_val2014_{question['image_id']:012}.jpg",
            "text": f"{question['question']}\n{SINGLE_WORD}",
            "answer": [given["answer"] for given in known["answers"]],
            "answer_type": known["answer_type"],
        }
        for question, known in zip(questions, found, strict=True)
    ]


def accuracy(said: str, answers: Sequence[str]) -> float:
    """Return the accuracy, 0..1, of a model's answer that is submitted as LLaVA submits it."""
    return vqa_accuracy(normalize_vqa_answer(said), answers)


def score_val(rows: list[dict], answers: dict) -> Scores:
    return open_answer_scores(rows, answers, accuracy, "answer_type")


_VQA = "unpack https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_{}_Val_mscoco.zip"
TASK = Task(
    name="vqav2",
    title="VQAv2 test-dev",
    folder="vqav2",
    needs=(
        File(TEST_DEV, EVAL_ZIP),
        File(TEST, EVAL_ZIP),
        File("test2015", "unpack http://images.cocodataset.org/zips/test2015.zip"),
    ),
    load=load,
    max_new_tokens=128,
    export=one_file(
        "answers_upload.json",
        lambda rows, answers: submission(answers, rows[0]["test_ids"] if rows else ()),
    ),
    submit_to="https://eval.ai/web/challenges/challenge-page/830/my-submission, phase test-dev",
)
VAL = Task(
    name="vqav2_val",
    title="VQAv2 val",
    folder="vqav2",
    needs=(
        File(VAL_QUESTIONS, _VQA.format("Questions")),
        File(VAL_ANSWERS, _VQA.format("Annotations")),
        File("val2014", "unpack http://images.cocodataset.org/zips/val2014.zip"),
    ),
    load=load_val,
    max_new_tokens=128,
    score=score_val,
)
