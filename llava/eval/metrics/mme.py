"""MME: two yes/no questions per image, one with each answer; at most 200 points per task.

Source: Fu et al., "MME: a comprehensive evaluation benchmark for multimodal large language models", 2023,
and its evaluation tool.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from llava.errors import UserError
from llava.eval.metrics.proportion import SEED, percentile_interval, resampled_means
from llava.eval.metrics.table import Score, Table, mean_score

TOTALS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
TASKS = tuple(task for tasks in TOTALS.values() for task in tasks)


class MMEAnswer(NamedTuple):
    task: str  # one of TASKS
    image: str  # its name within the task
    correct: bool


def parse_mme_answer(text: str) -> Literal["yes", "no", "other"]:
    """Find yes or no in the first four characters, in upper or lower case; "other" is always wrong."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_table(answers: Iterable[MMEAnswer]) -> Table:
    """Return the points of each task, and their sums for perception (at most 2000) and cognition (800).

    Returns:
        {task: {"accuracy", "accuracy_plus", "score"}}, then {"perception" | "cognition": {"score"}}. Accuracy
        counts right questions, accuracy_plus counts images with both questions right; both are fractions in
        0..1, `total` is the number of images, and score = 100 (accuracy + accuracy_plus). Tasks without
        answers have no row; neither does a sum without answered tasks.
    Raises:
        UserError: for an unknown task, or an image without exactly two answers.
    """
    right = _right_by_image(answers)
    table: Table = {
        task: {
            "accuracy": mean_score([count / 2 for count in counts]),
            "accuracy_plus": mean_score([float(count == 2) for count in counts]),
            "score": mean_score(_points(counts)),
        }
        for task, counts in right.items()
    }
    for name, tasks in TOTALS.items():
        answered = [task for task in tasks if task in right]
        if answered:
            rng = np.random.default_rng(SEED)
            resampled = np.sum([resampled_means(_points(right[task]), rng) for task in answered], axis=0)
            table[name] = {
                "score": Score(
                    sum(table[task]["score"].value for task in answered),
                    *percentile_interval(resampled),
                    sum(len(right[task]) for task in answered),
                )
            }
    return table


def _right_by_image(answers: Iterable[MMEAnswer]) -> dict[str, list[int]]:
    """Map each answered task, in the order of TASKS, to the number of right answers (0 to 2) per image."""
    pairs: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for task, image, correct in answers:
        if task not in TASKS:
            raise UserError(f"MME: unknown task {task!r}; expected one of {', '.join(TASKS)}.")
        pairs[task, image].append(bool(correct))
    for (task, image), pair in pairs.items():
        if len(pair) != 2:
            raise UserError(f"MME: {task}/{image} has {len(pair)} answers; expected 2.")
    if not pairs:
        raise UserError("MME: no answers to score.")
    right = {task: [sum(pair) for (of, _), pair in pairs.items() if of == task] for task in TASKS}
    return {task: counts for task, counts in right.items() if counts}


def _points(right: list[int]) -> list[float]:
    return [100 * (count / 2 + (count == 2)) for count in right]
