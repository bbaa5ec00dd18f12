"""GQA: questions that can be answered from a scene graph; the balanced split of testdev.

Source: Hudson and Manning, "GQA: a new dataset for real-world visual reasoning and compositional question
answering", 2019; the question file is LLaVA-1.5's.
"""

import json
from pathlib import Path

from llava.eval.metrics import GQAAnswer, gqa_correct, gqa_table, normalize_gqa_answer
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import EVAL_ZIP, annotations_of, images_in, one_file, read_json

QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
ANNOTATIONS = "data/testdev_balanced_questions.json"
IMAGES = "data/images"
ANNOTATION = {"answer": str, "types": {"structural": str}}


def load(folder: Path) -> list[dict]:
    """Return question rows with "answer" and "structural_type"."""
    rows = images_in(IMAGES, load_questions(folder / QUESTIONS, image=str))
    ids = [str(row["question_id"]) for row in rows]
    annotations = read_json(folder / ANNOTATIONS, {str: ANNOTATION})
    found = annotations_of(ids, annotations, folder / ANNOTATIONS)
    return [
        row | {"answer": known["answer"], "structural_type": known["types"]["structural"]}
        for row, known in zip(rows, found, strict=True)
    ]


def score(rows: list[dict], answers: dict) -> Scores:
    credit = {
        row["question_id"]: float(gqa_correct(answers[row["question_id"]], row["answer"])) for row in rows
    }
    table = gqa_table(GQAAnswer(bool(credit[row["question_id"]]), row["structural_type"]) for row in rows)
    return Scores(table, ("overall", "accuracy"), credit)


def submission(answers: dict) -> str:
    """Return the content of the file that GQA's own eval.py reads."""
    return json.dumps(
        [{"questionId": i, "prediction": normalize_gqa_answer(text)} for i, text in answers.items()]
    )


_GQA = "from https://cs.stanford.edu/people/dorarad/gqa/download.html"
TASK = Task(
    name="gqa",
    title="GQA testdev-balanced",
    folder="gqa",
    needs=(
        File(QUESTIONS, EVAL_ZIP),
        File(ANNOTATIONS, f"in questions1.2.zip {_GQA}"),
        File(IMAGES, f"unpack images.zip {_GQA}"),
    ),
    load=load,
    max_new_tokens=128,
    score=score,
    export=one_file("testdev_balanced_predictions.json", lambda rows, answers: submission(answers)),
    submit_to="GQA's own eval.py",
)
