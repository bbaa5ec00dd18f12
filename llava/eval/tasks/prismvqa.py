"""PrismVQA: eight families of questions with short answers on rendered scenes, scored beside chance."""

from pathlib import Path

from llava.errors import UserError
from llava.eval.json_files import misfit
from llava.eval.metrics import PrismVQAAnswer, exact_match, prismvqa_table
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import SINGLE_WORD

QUESTIONS, IMAGES = "test.jsonl", "test/images"


def load(folder: Path) -> list[dict]:
    """Return question rows with "answer", "family" and "chance".

    Raises:
        UserError: if a row lacks one of these, or one has the wrong type.
    """
    rows = load_questions(folder / QUESTIONS)
    for row in rows:
        if absent := {"answer", "family", "chance"} - row.keys():
            raise UserError(
                f"{folder / QUESTIONS}, question {row['question_id']} has no {', '.join(sorted(absent))}; "
                "make the files again with python -m llava.benchmark.prismvqa."
            )
        if problem := misfit(row, {"answer": str, "family": str, "chance": float}):
            raise UserError(
                f"{folder / QUESTIONS}, question {row['question_id']}: {problem}; make the files again."
            )
    return [row | {"text": f"{row['text']}\n{SINGLE_WORD}"} for row in rows]


def score(rows: list[dict], answers: dict) -> Scores:
    credit = {
        row["question_id"]: float(exact_match(answers[row["question_id"]], row["answer"])) for row in rows
    }
    table = prismvqa_table(
        PrismVQAAnswer(row["family"], bool(credit[row["question_id"]]), row["chance"]) for row in rows
    )
    return Scores(table, ("mean", "accuracy"), credit)


_MAKE = "run python -m llava.benchmark.prismvqa --output_dir DATA_ROOT/prismvqa"
TASK = Task(
    name="prismvqa",
    title="PrismVQA",
    folder="prismvqa",
    needs=(File(QUESTIONS, _MAKE), File(IMAGES, _MAKE)),
    load=load,
    max_new_tokens=8,
    score=score,
)
