"""MMMU val: 900 college questions in thirty subjects, multiple choice or open, on one to seven images.

Source: Yue et al., "MMMU: a massive multi-discipline multimodal understanding and reasoning benchmark for
expert AGI", 2024. The prompts are those of its tool for LLaVA-1.5, except that every image is shown, at the
place where it is mentioned; the tool shows only the first image.
"""

import ast
import re
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import (
    MMMUAnswer,
    guess_option,
    mmmu_table,
    open_answer_correct,
    parse_multiple_choice,
)
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import OPTION_LETTER, SINGLE_WORD

FILES = "*/validation-*.parquet"  # one folder per subject
LETTERS = "ABCDEFGHIJ"
MENTION = re.compile(r"<image (\d)>")
COLUMNS = ("id", "question", "options", "answer", "question_type", *(f"image_{i}" for i in range(1, 8)))


def load(folder: Path) -> list[dict]:
    """Return rows with "options" ({letter: text}, empty for an open question), "answer" and "subject"."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("MMMU's files need pyarrow; run pip install -e '.[eval]'.") from None
    return [
        question_row(published)
        for path in sorted(folder.glob(FILES))
        for published in parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    ]


def question_row(published: dict) -> dict:
    """Turn a row of the parquet files into a question; "image" has encoded files in the order shown."""
    is_choice = published["question_type"] == "multiple-choice"
    # the files hold lists as Python literals
    options = dict(zip(LETTERS, ast.literal_eval(published["options"]), strict=False)) if is_choice else {}
    listed = "".join(f"({letter}) {text}\n" for letter, text in options.items())
    text = f"{published['question']}\n" + (f"{listed}\n{OPTION_LETTER}" if is_choice else SINGLE_WORD)
    mentioned = MENTION.findall(text)
    images = {i: published[f"image_{i}"] for i in range(1, 8) if published[f"image_{i}"]}
    if absent := [number for number in mentioned if int(number) not in images]:
        raise UserError(f"MMMU question {published['id']} mentions image {absent[0]}, but has no such image.")
    # images that are not mentioned come before the question
    unmentioned = [i for i in images if str(i) not in mentioned]
    text = "<image>\n" * len(unmentioned) + MENTION.sub("<image>", text)
    answer = published["answer"]
    return {
        "question_id": published["id"],
        "text": text,
        "image": [images[int(i)]["bytes"] for i in [*unmentioned, *mentioned]],
        "options": options,
        "answer": ast.literal_eval(answer) if answer.startswith(("['", '["')) else answer,
        "subject": published["id"].removeprefix("validation_").rsplit("_", 1)[0],
    }


def score(rows: list[dict], answers: dict) -> Scores:
    """Return the accuracy over all, by discipline and by subject; if no option is named, one is guessed."""
    judged = {row["question_id"]: _judge(row, answers[row["question_id"]]) for row in rows}
    credit = {question_id: float(answer.correct) for question_id, answer in judged.items()}
    unparsed = sum(not answer.parsed for answer in judged.values())
    return Scores(mmmu_table(judged.values()), ("overall", "accuracy"), credit, unparsed=unparsed)


def _judge(row: dict, response: str) -> MMMUAnswer:
    if not row["options"]:
        return MMMUAnswer(row["subject"], open_answer_correct(response, row["answer"]))
    named = parse_multiple_choice(response, row["options"])
    letter = named or guess_option(list(row["options"]), row["question_id"])
    return MMMUAnswer(row["subject"], letter == row["answer"], parsed=named is not None)


TASK = Task(
    name="mmmu",
    title="MMMU val",
    folder="MMMU",
    needs=(File(FILES, "a folder for each subject, from https://huggingface.co/datasets/MMMU/MMMU"),),
    load=load,
    max_new_tokens=128,
    score=score,
)
