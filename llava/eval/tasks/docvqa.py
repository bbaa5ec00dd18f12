"""DocVQA: questions on scanned documents. val is scored here by ANLS; a server scores test.

Source: Mathew et al., "DocVQA: a dataset for VQA on document images", 2021; the prompts are TokenPacker's.
"""

import json
from functools import partial
from pathlib import Path, PurePosixPath

from llava.errors import UserError
from llava.eval.json_files import ID, misfit
from llava.eval.metrics import anls, mean_table
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import SINGLE_WORD, one_file, read_json

QUESTION = {"questionId": ID, "image": str, "question": str, "question_types?": [str]}
ANSWERS = {"answers": [str, ...]}
VAL_FILES, TEST_FILES = "val_v1.0*.json", "test_v1.0*.json"


def read_questions(path: str | Path, form: dict = QUESTION) -> list[dict]:
    """Read rows {"question_id", "text", "image": a file name, "question_types" (may be empty), "answer"?}.

    Args:
        form: the expected form of each question in the file.
    Raises:
        UserError: if the file is missing or is not a DocVQA file.
    """
    published = read_json(path)
    if not isinstance(published, dict) or "data" not in published:
        raise UserError(f'{path}: expected DocVQA\'s questions below "data"; fetch the file again.')
    if problem := misfit(published["data"], [form], '"data"'):
        raise UserError(f"{path}: {problem}; fetch the file again.")
    return [
        {
            "question_id": question["questionId"],
            # older files have "documents/" before the name
            "image": PurePosixPath(question["image"]).name,
            "text": f"{question['question']}\n{SINGLE_WORD}",
            "question_types": question.get("question_types") or [],
        }
        | ({"answer": question["answers"]} if "answers" in question else {})
        for question in published["data"]
    ]


def load(folder: Path, pattern: str, form: dict = QUESTION) -> list[dict]:
    path = max(folder.glob(pattern))  # if both files exist, the one with question types
    return [row | {"image": f"images/{row['image']}"} for row in read_questions(path, form)]


def score(rows: list[dict], answers: dict) -> Scores:
    """Return ANLS over all, and by question type if the file has types; a question may have several."""
    credit = {row["question_id"]: anls(answers[row["question_id"]], row["answer"]) for row in rows}
    table = mean_table("anls", ((credit[row["question_id"]], row["question_types"]) for row in rows))
    return Scores(table, ("overall", "anls"), credit)


def submission(answers: dict) -> str:
    """Return the server's file: DocVQA's ids with the answers, without final periods."""
    return json.dumps([{"questionId": i, "answer": text.rstrip(".")} for i, text in answers.items()])


_RRC = "from https://rrc.cvc.uab.es/?ch=17&com=downloads, task 1"
TASK = Task(
    name="docvqa",
    title="DocVQA val",
    folder="docvqa",
    needs=(File(VAL_FILES, _RRC), File("images", f"the pages of all documents, {_RRC}")),
    load=partial(load, pattern=VAL_FILES, form={**QUESTION, **ANSWERS}),
    max_new_tokens=128,
    score=score,
)
TEST = Task(
    name="docvqa_test",
    title="DocVQA test",
    folder="docvqa",
    needs=(File(TEST_FILES, _RRC), File("images", f"the pages of all documents, {_RRC}")),
    load=partial(load, pattern=TEST_FILES),
    max_new_tokens=128,
    export=one_file("answers_upload.json", lambda rows, answers: submission(answers)),
    submit_to="https://rrc.cvc.uab.es/?ch=17&com=evaluation&task=1",
)
