"""MMMU val: 900 college questions in thirty subjects, multiple choice or open, on one to seven images.

Source: Yue et al., "MMMU: a massive multi-discipline multimodal understanding and reasoning benchmark for
expert AGI", 2024. Prompts are those of its tool for LLaVA-1.5, but that every image is shown, where it is
mentioned; the tool shows the first alone.
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

FILES = "*/validation-*.parquet"  # a folder a subject
LETTERS = "ABCDEFGHIJ"
MENTION = re.compile(r"<image (\d)>")
COLUMNS = ("id", "question", "options", "answer", "question_type", *(f"image_{i}" for i in range(1, 8)))


def load(folder: Path) -> list[dict]:
    """Question rows with "options" {letter: text}, empty for an open question, "answer" and "subject"."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError("MMMU's files need pyarrow; pip install -e '.[eval]'.") from None
    return [
        question_row(published)
        for path in sorted(folder.glob(FILES))
        for published in parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    ]


def question_row(published: dict) -> dict:
    """A row of the parquet files as a question, its "image" holding encoded files in the order shown."""
    is_choice = published["question_type"] == "multiple-choice"
    # lists are written as Python writes them
    options = dict(zip(LETTERS, ast.literal_eval(published["options"]), strict=False)) if is_choice else {}
    listed = "".join(f"({letter}) {text}\n" for letter, text in options.items())
    text = f"{published['question']}\n" + (f"{listed}\n{OPTION_LETTER}" if is_choice else SINGLE_WORD)
    mentioned = MENTION.findall(text)
    images = {i: published[f"image_{i}"] for i in range(1, 8) if published[f"image_{i}"]}
    if absent := [number for number in mentioned if int(number) not in images]:
        raise UserError(f"MMMU question {published['id']} mentions image {absent[0]}, which it lacks.")
    # an image that is not mentioned comes ahead of the question
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
    """Accuracy over all, by discipline and by subject; where no option is named, one is guessed."""
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
    needs=(File(FILES, "a folder a subject, from https://huggingface.co/datasets/MMMU/MMMU"),),
    load=load,
    max_new_tokens=128,
    score=score,
)
