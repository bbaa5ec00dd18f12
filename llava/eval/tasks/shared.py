"""What several benchmarks have in common: LLaVA-1.5's instructions, sources, and how files are read."""

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
    """A JSON file.

    Args:
        form: of its value, as json_files.misfit takes it.
    Raises:
        UserError: if it is missing, damaged or not of the form; names it, and the place where it can.
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
    """The rows with their image paths put below `folder`."""
    return [row | {"image": f"{folder}/{row['image']}"} for row in rows]


def find(table: dict, key, where: str | Path):
    """`table[key]`.

    Raises:
        UserError: if there is none: the files do not belong together.
    """
    if key not in table:
        raise UserError(
            f"{where} has nothing for question {key}; fetch question and annotation files that belong "
            "together."
        )
    return table[key]


def annotations_of(keys: list, annotations: dict, where: str | Path) -> list:
    """The annotation of each question's key.

    Args:
        where: the annotations' file, for messages.
    Raises:
        UserError: if a question has none, or one is of no question: a file is cut, or of another edition.
    """
    if missing := annotations.keys() - set(keys):
        raise UserError(
            f"{len(missing)} questions of {where} are not there, among them {min(missing, key=str)}; "
            "use whole files."
        )
    return [find(annotations, key, where) for key in keys]


def answers_by_id(path: str | Path) -> dict:
    """{question_id: text} of an answers file. Errors as load_answers and by_id."""
    return by_id(load_answers(path), path)


def by_id(rows: list[dict], path: str | Path) -> dict:
    """{question_id: text} of an answers file's rows. Raises UserError for an id that stands twice."""
    ids = dict.fromkeys(row["question_id"] for row in rows)
    return texts_by_id([{"question_id": i} for i in ids], rows, path)


def one_file(name: str, submission: Callable[[list[dict], dict], str]) -> Callable:
    """A task's `export` of one file, which holds what `submission` makes of the rows and answers."""

    def export(rows: list[dict], answers: dict, folder: Path) -> list[Path]:
        write_text(folder / name, submission(rows, answers))
        return [folder / name]

    return export


def credit_of(rows: list[dict], said: dict) -> dict:
    """{question_id: 1.0 or 0.0}: whether what an answer was understood to say is the row's "answer"."""
    return {row["question_id"]: float(said[row["question_id"]] == row["answer"]) for row in rows}


def letter_of(text: str, num_options: int) -> str | None:
    """The option that an answer names, of the first `num_options`; None if it names no one of them."""
    return parse_option_letter(text, LETTERS[:num_options])


def open_answer_scores(
    rows: list[dict], answers: dict, accuracy: Callable[[str, Sequence[str]], float], part: str | None = None
) -> Scores:
    """Scores of short answers that ten people gave, too: rows have them as "answer".

    Args:
        accuracy: (what the model said, the ten answers) to 0..1.
        part: key of the rows that tells the benchmark's parts apart.
    """
    credit = {row["question_id"]: accuracy(answers[row["question_id"]], row["answer"]) for row in rows}
    table = mean_table(
        "accuracy", ((credit[row["question_id"]], [row[part]] if part else []) for row in rows)
    )
    return Scores(table, ("overall", "accuracy"), credit)
