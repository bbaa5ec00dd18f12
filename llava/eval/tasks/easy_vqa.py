"""easy-VQA: open questions on the colour and shape of a drawn figure, beside what blind guessing reaches."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from llava.eval.metrics import exact_match, wilson_interval
from llava.eval.metrics.text_match import normalise

CATEGORIES = ("color", "shape")


def score(questions: list[dict], answers: list[dict], train_questions: list[dict]) -> dict:
    """Exact-match accuracy of a model and of two baselines that never see an image.

    `question_only` answers each question text with its most frequent training answer (the overall one for a
    text that training never asks); `majority` always gives the most frequent training answer. Ties fall to
    the alphabetically first answer.

    Args:
        questions: test rows {"question_id", "text", "answer", "category"}.
        answers: rows {"question_id", "text"}, exactly one for each question.
        train_questions: rows {"text", "answer"} of the train split.
    Returns:
        {"model" | "question_only" | "majority": {"overall" | "color" | "shape": {"correct", "total",
        "accuracy", "low", "high"}}}; accuracy and the 95% Wilson bounds are fractions in 0..1.
    Raises:
        ValueError: for missing, duplicate or unknown ids, or a category that is neither color nor shape.
    """
    by_id = _unique(questions, "question file")
    said = _unique(answers, "answers file")
    if missing := [i for i in by_id if i not in said]:
        raise ValueError(f"{_some(missing)}: no answer in the answers file; run the evaluation to its end.")
    if unknown := [i for i in said if i not in by_id]:
        raise ValueError(
            f"{_some(unknown)}: answered but not in the question file; pass the question file that was asked."
        )
    if odd := [i for i, question in by_id.items() if question.get("category") not in CATEGORIES]:
        raise ValueError(f"{_some(odd)}: category must be one of {', '.join(CATEGORIES)}.")
    if not train_questions:
        raise ValueError("the train question file is empty; the baselines are counted from it.")
    guess_question, guess_majority = _baselines(train_questions)
    return {
        "model": _tally(questions, lambda question: said[question["question_id"]]["text"]),
        "question_only": _tally(questions, guess_question),
        "majority": _tally(questions, guess_majority),
    }


def _baselines(train_questions: list[dict]) -> tuple[Callable[[dict], str], Callable[[dict], str]]:
    """Two functions from a question to an answer: by its text, and blind to it."""
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


def _unique(rows: Iterable[dict], where: str) -> dict:
    by_id, repeated = {}, []
    for row in rows:
        if row["question_id"] in by_id:
            repeated.append(row["question_id"])
        by_id[row["question_id"]] = row
    if repeated:
        raise ValueError(f"{_some(repeated)}: more than once in the {where}; keep one row an id.")
    return by_id


def _some(ids: list) -> str:
    shown = ", ".join(str(i) for i in ids[:5])
    return f"question {shown}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
