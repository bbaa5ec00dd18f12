"""ScienceQA: school exam questions with two to five options, some of them on an image (ScienceQA-IMG).

Source: Lu et al., "Learn to explain: multimodal reasoning via thought chains for science question
answering", 2022; the question file is LLaVA-1.5's.
"""

from pathlib import Path

from llava.errors import UserError
from llava.eval.json_files import ID
from llava.eval.metrics import ScienceQAAnswer, science_qa_table
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import (
    EVAL_ZIP,
    LETTERS,
    OPTION_LETTER,
    annotations_of,
    credit_of,
    find,
    letter_of,
    read_json,
)

QUESTIONS = "llava_test_CQM-A.json"
RECORD = {"id": ID, "conversations": [{"value": str}, ...], "image?": str}
PROBLEM = {"choices": [str, ...], "answer": int, "subject": str, "grade": str, "hint?": str}
PROBLEMS, SPLITS, IMAGES = "problems.json", "pid_splits.json", "images/test"


def read_questions(path: str | Path, instruction: str = OPTION_LETTER) -> list[dict]:
    """Read rows {"question_id", "text", "image"?} from LLaVA's conversations, with LLaVA-1.5's prompts.

    Args:
        instruction: follows the question on a line of its own; may be empty.
    """
    rows = []
    for record in read_json(path, [RECORD]):
        words = record["conversations"][0]["value"].replace("<image>", "").strip()
        text = f"{words}\n{instruction}" if instruction else words
        row = {"question_id": record["id"], "text": text}
        if record.get("image"):
            row |= {"text": f"<image>\n{text}", "image": record["image"]}
        rows.append(row)
    return rows


def read_problems(folder: Path, split: str = "test") -> dict[str, dict]:
    """Read {id: problem} of a split, in the order of the split."""
    problems = read_json(folder / PROBLEMS, {str: PROBLEM})
    splits = read_json(folder / SPLITS, {str: [str, ...]})
    if split not in splits:
        raise UserError(f"{folder / SPLITS} has no split {split!r}; choose from {', '.join(splits)}.")
    chosen = {i: find(problems, i, folder / PROBLEMS) for i in splits[split]}
    for i, problem in chosen.items():
        if not 0 <= problem["answer"] < len(problem["choices"]) <= len(LETTERS):
            raise UserError(
                f"{folder / PROBLEMS}, problem {i} has {len(problem['choices'])} choices, but its answer is "
                f"choice {problem['answer']}, counted from 0; fetch the file again."
            )
    return chosen


def load(folder: Path) -> list[dict]:
    """Return question rows with "answer" (a letter) and "problem"."""
    rows = read_questions(folder / QUESTIONS)
    problems = annotations_of([row["question_id"] for row in rows], read_problems(folder), folder / SPLITS)
    for row, problem in zip(rows, problems, strict=True):
        row |= {"problem": problem, "answer": LETTERS[problem["answer"]]}
        if "image" in row:
            row["image"] = f"{IMAGES}/{row['image']}"
    return rows


def score(rows: list[dict], answers: dict) -> Scores:
    """Return the accuracy over all, and by the columns of ScienceQA's results; LLaVA-1.5 reports "IMG"."""
    said = {
        row["question_id"]: letter_of(answers[row["question_id"]], len(row["problem"]["choices"]))
        for row in rows
    }
    credit = credit_of(rows, said)
    table = science_qa_table(
        ScienceQAAnswer(
            correct=bool(credit[row["question_id"]]),
            subject=row["problem"]["subject"],
            grade=row["problem"]["grade"],
            has_text=bool(row["problem"].get("hint")),
            has_image="image" in row,
        )
        for row in rows
    )
    headline = "IMG" if "IMG" in table else "overall"  # --limit may leave no question with an image
    return Scores(table, (headline, "accuracy"), credit, unparsed=list(said.values()).count(None))


_SCIENCE_QA = "from https://github.com/lupantech/ScienceQA, folder data/scienceqa"
TASK = Task(
    name="scienceqa",
    title="ScienceQA-IMG",
    folder="scienceqa",
    needs=(
        File(QUESTIONS, EVAL_ZIP),
        File(PROBLEMS, _SCIENCE_QA),
        File(SPLITS, _SCIENCE_QA),
        File(IMAGES, f"{_SCIENCE_QA}; run its tools/download.sh"),
    ),
    load=load,
    max_new_tokens=128,
    score=score,
)
