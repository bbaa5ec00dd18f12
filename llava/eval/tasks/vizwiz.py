"""VizWiz: questions of blind people on their own photographs. A server scores test; val is scored here.

Source: Gurari et al., "VizWiz grand challenge: answering visual questions from blind people", 2018; the test
question file is LLaVA-1.5's.
"""

import json
from pathlib import Path, PurePosixPath

from llava.eval.metrics import normalize_vqa_answer
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import EVAL_ZIP, SINGLE_WORD, images_in, one_file, open_answer_scores, read_json
from llava.eval.tasks.vqav2 import accuracy

TEST, VAL_ANNOTATIONS = "llava_test.jsonl", "val.json"
ANNOTATION = {"image": str, "question": str, "answers": [{"answer": str}, ...], "answer_type": str}
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def load(folder: Path) -> list[dict]:
    return images_in("test", read_questions(folder / TEST))


def read_questions(path: str | Path) -> list[dict]:
    """Read question rows, each of which has one image."""
    return load_questions(path, image=str)


def submission(rows: list[dict], answers: dict) -> str:
    """Return the server's file: answers with the file names of their images."""
    return json.dumps(
        [
            {
                "image": PurePosixPath(row["image"]).name,
                "answer": normalize_vqa_answer(answers[row["question_id"]]),
            }
            for row in rows
        ]
    )


def load_val(folder: Path) -> list[dict]:
    """Read val with LLaVA-1.5's prompts for test; rows have "answer" (ten texts) and "answer_type"."""
    return [
        {
            "question_id": row["image"],  # each image has one question
            "image": f"val/{row['image']}",
            "text": f"{row['question']}\n{UNANSWERABLE}\n{SINGLE_WORD}",
            "answer": [given["answer"] for given in row["answers"]],
            "answer_type": row["answer_type"],
        }
        for row in read_json(folder / VAL_ANNOTATIONS, [ANNOTATION])
    ]


def score_val(rows: list[dict], answers: dict) -> Scores:
    return open_answer_scores(rows, answers, accuracy, "answer_type")


TASK = Task(
    name="vizwiz",
    title="VizWiz test",
    folder="vizwiz",
    needs=(
        File(TEST, EVAL_ZIP),
        File("test", "unpack https://vizwiz.cs.colorado.edu/VizWiz_final/images/test.zip"),
    ),
    load=load,
    max_new_tokens=128,
    export=one_file("answers_upload.json", submission),
    submit_to="the VizWiz VQA challenge's test phase on https://eval.ai",
)
VAL = Task(
    name="vizwiz_val",
    title="VizWiz val",
    folder="vizwiz",
    needs=(
        File(VAL_ANNOTATIONS, "in https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip"),
        File("val", "unpack https://vizwiz.cs.colorado.edu/VizWiz_final/images/val.zip"),
    ),
    load=load_val,
    max_new_tokens=128,
    score=score_val,
)
