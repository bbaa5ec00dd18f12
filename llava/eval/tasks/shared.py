"""The parts that several benchmarks share: LLaVA-1.5's instructions, sources, reading files, scoring."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llava.errors import UserError
from llava.eval.json_files import misfit, parse
from llava.eval.metrics import mean_table, parse_option_letter
from llava.eval.records import load_answers, texts_by_id
from llava.eval.task import Scores
from llava.textfile import read_text
from llava.wholefile import write_text

SINGLE_WORD = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDE"
WHOLE_NUMBER = re.compile("[0-9]{1,15}")  # an id
EVAL_ZIP = "in eval.zip of LLaVA-1.5, see https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"


def read_json(path: str | Path, form: object = (dict, list)) -> Any:
    """Read a JSON file.

    Args:
        form: the expected form of its value, see json_files.misfit.
    Raises:
        UserError: if it is missing, damaged or not of the form; names the file and, if possible, the place.
    """
    text = read_text(path)
    try:
        value = parse(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch it again.") from None
    if problem := misfit(value, form):
        raise UserError(f"{path}: {problem}; fetch it again.")
    return value


def images_in(folder: str, rows: list[dict]) -> list[dict]:
    """Return the rows with `folder` put before their image paths."""
    return [row | {"image": f"{folder}/{row['image']}"} for row in rows]


def find(table: dict, key, where: str | Path):
    """Return `table[key]`.

    Raises:
        UserError: if there is no such key, because the files do not belong together.
    """
    if key not in table:
        raise UserError(
            f"{where} has no entry for question {key}; fetch question and annotation files that belong "
            "together."
        )
    return table[key]


def annotations_of(keys: list, annotations: dict, where: str | Path) -> list:
    """Return the annotation of each key, in order.

    Args:
        keys: a key for each question.
        where: the annotations' file, for messages.
    Raises:
        UserError: if a question has no annotation or the reverse: a file is cut off or of another edition.
    """
    if missing := annotations.keys() - set(keys):
        raise UserError(
            f"{len(missing)} question(s) of {where} were not asked, for example {min(missing, key=str)}; "
            "use whole files."
        )
    return [find(annotations, key, where) for key in keys]


def answers_by_id(path: str | Path) -> dict:
    """Return {question_id: text} of an answers file. Raises as load_answers and by_id do."""
    return by_id(load_answers(path), path)


def by_id(rows: list[dict], path: str | Path) -> dict:
    """Return {question_id: text} of an answers file's rows. Raises UserError if an id occurs twice."""
    ids = dict.fromkeys(row["question_id"] for row in rows)
    return texts_by_id([{"question_id": i} for i in ids], rows, path)


def one_file(name: str, submission: Callable[[list[dict], dict], str]) -> Callable:
    """Return a task's `export`, which writes what `submission` makes from rows and answers to one file."""

    def export(rows: list[dict], answers: dict, folder: Path) -> list[Path]:
        write_text(folder / name, submission(rows, answers))
        return [folder / name]

    return export


def credit_of(rows: list[dict], said: dict) -> dict:
    """Return {question_id: 1.0 or 0.0}: whether the parsed answer in `said` equals the row's "answer"."""
    return {row["question_id"]: float(said[row["question_id"]] == row["answer"]) for row in rows}


def letter_of(text: str, num_options: int) -> str | None:
    """Return which of the first `num_options` options an answer names; None unless it names one of them."""
    return parse_option_letter(text, LETTERS[:num_options])


def open_answer_scores(
    rows: list[dict], answers: dict, accuracy: Callable[[str, Sequence[str]], float], part: str | None = None
) -> Scores:
    """Score short answers against those of ten people, which the rows have as "answer".

    Args:
        accuracy: turns (the model's answer, the ten answers) into 0..1.
        part: the key under which each row has the name of its part of the benchmark; None: no parts.
    """
    credit = {row["question_id"]: accuracy(answers[row["question_id"]], row["answer"]) for row in rows}
    table = mean_table(
        "accuracy", ((credit[row["question_id"]], [row[part]] if part else []) for row in rows)
    )
    return Scores(table, ("overall", "accuracy"), credit)
