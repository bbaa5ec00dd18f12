"""SEED-Bench: multiple choice on images and on middle frames of videos, twelve types of questions.

Source: Li et al., "SEED-Bench: benchmarking multimodal LLMs with generative comprehension", 2023; the
question file is LLaVA-1.5's.
"""

import json
from pathlib import Path

from llava.errors import UserError
from llava.eval.json_files import ID
from llava.eval.metrics import SeedAnswer, seed_table
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import EVAL_ZIP, annotations_of, credit_of, letter_of, one_file, read_json

QUESTIONS, ANNOTATIONS = "llava-seed-bench.jsonl", "SEED-Bench.json"
NUM_OPTIONS = 4
# The form of the whole file, for json_files.misfit
ALL = {
    "question_type": {str: ID},
    "questions": [{"question_id": ID, "answer": str, "question_type_id": ID, "data_type": str}],
}


def annotate(rows: list[dict], path: str | Path) -> list[dict]:
    """Add fields from SEED-Bench.json: "published" (its own row), "answer" (a letter) and "question_type".

    Raises:
        UserError: if rows and annotations are not for the same questions.
    """
    published = read_json(path, ALL)
    names = {number: name for name, number in published["question_type"].items()}
    if odd := [row for row in published["questions"] if row["question_type_id"] not in names]:
        raise UserError(
            f"{path}: question {odd[0]['question_id']} has type {odd[0]['question_type_id']!r}, which is "
            'not in "question_type"; fetch the file again.'
        )
    # LLaVA's ids are numbers where that is possible
    annotations = {str(question["question_id"]): question for question in published["questions"]}
    found = annotations_of([str(row["question_id"]) for row in rows], annotations, path)
    return [
        row
        | {"published": known, "answer": known["answer"], "question_type": names[known["question_type_id"]]}
        for row, known in zip(rows, found, strict=True)
    ]


def load(folder: Path) -> list[dict]:
    return annotate(load_questions(folder / QUESTIONS), folder / ANNOTATIONS)


def score(rows: list[dict], answers: dict) -> Scores:
    said = {question_id: letter_of(text, NUM_OPTIONS) for question_id, text in answers.items()}
    credit = credit_of(rows, said)
    table = seed_table(
        SeedAnswer(bool(credit[row["question_id"]]), row["question_type"], row["published"]["data_type"])
        for row in rows
    )
    return Scores(table, ("overall", "accuracy"), credit, unparsed=list(said.values()).count(None))


def submission(rows: list[dict], answers: dict) -> str:
    """Return the leaderboard's file: the model's answers under SEED-Bench's own ids."""
    return "".join(
        json.dumps(
            {"question_id": row["published"]["question_id"], "prediction": answers[row["question_id"]]},
            ensure_ascii=False,
        )
        + "\n"
        for row in rows
    )


_SEED = "see https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md"
TASK = Task(
    name="seed",
    title="SEED-Bench",
    folder="seed_bench",
    needs=(
        File(QUESTIONS, EVAL_ZIP),
        File(ANNOTATIONS, _SEED),
        File("SEED-Bench-image", _SEED),
        File("SEED-Bench-video-image", "the videos' middle frames; extract_video_frames.py " + EVAL_ZIP),
    ),
    load=load,
    score=score,
    export=one_file("answers_upload.jsonl", submission),
    submit_to="https://huggingface.co/spaces/AILab-CVC/SEED-Bench_Leaderboard",
)
