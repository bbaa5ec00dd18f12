"""easy-VQA: open questions on the colour and shape of a drawn figure, and two baselines without the image."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import exact_match, mean_score, mean_table, wilson_interval
from llava.eval.metrics.text_match import normalise
from llava.eval.records import QUESTION, load_questions, texts_by_id
from llava.eval.task import File, Scores, Task

CATEGORIES = ("color", "shape")
# The forms of rows, for json_files.misfit
TRAIN_QUESTION = {"text": str, "answer": str}
TEST_QUESTION = {**QUESTION, **TRAIN_QUESTION, "category": str}
TEST, TRAIN, IMAGES = "test_questions.jsonl", "train_questions.jsonl", "test/images"


def score(
    questions: list[dict], answers: list[dict], train_questions: list[dict], answers_file: str | Path = ""
) -> dict:
    """Return the exact-match accuracy of a model and of two baselines that never see an image.

    `majority` always gives the most frequent training answer. `question_only` gives the most frequent
    training answer to the same question text, or that of `majority` for a text that training does not have.
    Ties go to the alphabetically first answer.

    Args:
        questions: test rows {"question_id", "text", "answer", "category"}.
        answers: rows {"question_id", "text"}, exactly one for each question.
        train_questions: rows {"text", "answer"} of the train split.
        answers_file: the file of the answers, for messages.
    Returns:
        {"model" | "question_only" | "majority": {"overall" | "color" | "shape": {"correct", "total",
        "accuracy", "low", "high"}}}; accuracy and the 95% Wilson bounds are fractions in 0..1.
    Raises:
        UserError: for missing, duplicate or unknown ids, or a category that is neither color nor shape.
    """
    said = texts_by_id(questions, answers, answers_file)
    if odd := [row["question_id"] for row in questions if row.get("category") not in CATEGORIES]:
        raise UserError(f"question {odd[0]}: category must be one of {', '.join(CATEGORIES)}.")
    guess_question, guess_majority = _baselines(train_questions)
    return {
        "model": _tally(questions, lambda question: said[question["question_id"]]),
        "question_only": _tally(questions, guess_question),
        "majority": _tally(questions, guess_majority),
    }


def _baselines(train_questions: list[dict]) -> tuple[Callable[[dict], str], Callable[[dict], str]]:
    """Return two functions that answer a question: one uses its text, the other ignores it."""
    if not train_questions:
        raise UserError("the train question file is empty, but the baselines are counted from it.")
    overall, by_text = Counter(), defaultdict(Counter)
    for row in train_questions:
        answer = normalise(row["answer"])
        overall[answer] += 1
        by_text[normalise(row["text"])][answer] += 1
    majority = _most_common(overall)
    best = {text: _most_common(counts) for text, counts in by_text.items()}
    return lambda question: best.get(normalise(question["text"]), majority), lambda question: majority


def _most_common(counts: Counter) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _tally(questions: list[dict], answer_of: Callable[[dict], str]) -> dict:
    correct, total = Counter(), Counter()
    for question in questions:
        right = exact_match(answer_of(question), question["answer"])
        for key in ("overall", question["category"]):
            total[key] += 1
            correct[key] += right
    rows = {}
    for key in ("overall", *CATEGORIES):
        low, high = wilson_interval(correct[key], total[key])
        accuracy = correct[key] / total[key] if total[key] else 0.0
        rows[key] = {
            "correct": correct[key],
            "total": total[key],
            "accuracy": accuracy,
            "low": low,
            "high": high,
        }
    return rows


def load(folder: Path) -> list[dict]:
    """Return the test rows, each with the answers of the two baselines."""
    question_only, majority = _baselines(load_questions(folder / TRAIN, answer=str))
    return [
        row | {"question_only": question_only(row), "majority": majority(row)}
        for row in load_questions(folder / TEST, answer=str, category=str)
    ]


def score_task(rows: list[dict], answers: dict) -> Scores:
    """Return the accuracy over all and by category, and that of the two baselines."""
    credit = {
        row["question_id"]: float(exact_match(answers[row["question_id"]], row["answer"])) for row in rows
    }
    table = mean_table(
        "accuracy", ((credit[row["question_id"]], [row["category"]]) for row in rows), CATEGORIES
    )
    for key, title in (("question_only", "question only"), ("majority", "most frequent answer")):
        blind = [float(exact_match(row[key], row["answer"])) for row in rows]
        table[f"baseline: {title}"] = {"accuracy": mean_score(blind)}
    return Scores(table, ("overall", "accuracy"), credit)


_CONVERT = "run python scripts/convert_easy_vqa.py --data EASY_VQA/data --output DATA_ROOT/easy_vqa"
_LINK = (
    "link EASY_VQA/data/test to DATA_ROOT/easy_vqa/test; EASY_VQA is playground/packages/easy_vqa/easy_vqa, "
    "where scripts/quickstart.sh unpacks the package easy-vqa 1.0"
)
TASK = Task(
    name="easy_vqa",
    title="easy-VQA",
    folder="easy_vqa",
    needs=(
        File(TEST, _CONVERT),
        File(TRAIN, _CONVERT),
        File(IMAGES, _LINK),
    ),
    load=load,
    max_new_tokens=8,
    score=score_task,
)
