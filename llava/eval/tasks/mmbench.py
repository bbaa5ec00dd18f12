"""MMBench and MMBench-CN, dev: a question counts if it is right under every rotation of its options.

Source: Liu et al., "MMBench: is your multi-modal model an all-around player?", 2023. On the server a judge
also interprets answers that name no letter. Here they are wrong, and counted as unparsed.
"""

import csv
from base64 import b64decode
from functools import partial
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import CircularAnswer, circular_table
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import LETTERS, OPTION_LETTER, WHOLE_NUMBER, credit_of, letter_of
from llava.textfile import open_text

INSTRUCTIONS = {"en": OPTION_LETTER, "cn": "请直接回答选项字母。"}
COLUMNS = "ABCD"
SCORED = {"answer", "category", "l2-category"}  # columns that scoring needs
ROTATION = 1_000_000  # the ids of question n's rotations are n, n + ROTATION, n + 2 ROTATION, ...
NOT_UPLOADED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_COLUMN = 6  # its index in the upload, from 0


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a tsv file; an image is in base64, or is the index of another row with that image."""
    csv.field_size_limit(2**31 - 1)  # a whole image is one field
    try:
        with open_text(path, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); fetch the file again.") from error
    for number, row in enumerate(rows, start=1):
        if None in row.values() or not {"index", "question", "image", "A", "B"} <= row.keys():
            raise UserError(f"{path}, row {number}: columns are missing; fetch the file again.")
        if None in row:
            raise UserError(f"{path}, row {number}: there are more cells than columns; fetch the file again.")
        if not WHOLE_NUMBER.fullmatch(row["index"]):
            raise UserError(f"{path}, row {number}: its index is {row['index']!r}; fetch the file again.")
    return rows


def read_questions(path: str | Path, instruction: str, all_rounds: bool = False) -> list[dict]:
    """Read question rows {"question_id", "text", "image": bytes, "options": texts of A, B, ..., "columns"}.

    Args:
        instruction: follows the options on a line of its own; may be empty.
        all_rounds: ask each question once for each rotation of its options, under the same id.
    """
    rows, table = [], read_table(path)
    images = _images(table, path)
    for columns in table:
        options = _options(columns)
        for shift in range(len(options) if all_rounds else 1):
            rotated = options[shift:] + options[:shift]
            lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, rotated, strict=False)]
            hint = columns.get("hint", "")
            lines = [*([hint] if _is_given(hint) else []), columns["question"], *lines]
            letters = list(LETTERS[: len(options)])
            rows.append(
                {
                    "question_id": int(columns["index"]),
                    "text": "\n".join([*lines, instruction] if instruction else lines),
                    "image": images[int(columns["index"])],
                    "options": options,
                    "columns": columns,
                    # fields of LLaVA's answer rows
                    "answer_fields": {
                        "round_id": shift,
                        "options": rotated,
                        "option_char": letters[shift:] + letters[:shift],
                    },
                }
            )
    return rows


def _images(table: list[dict], path: str | Path) -> dict[int, bytes]:
    """Map each index to its encoded image; rows that name another row share its bytes.

    This removes the column "image" from the rows, so that no image is in memory twice.
    """
    images, named = {}, {}
    for columns in table:
        index, cell = int(columns["index"]), columns.pop("image").strip()
        if cell.isdecimal():
            named[index] = int(cell)
        else:
            images[index] = _decoded(cell, index, path)
    for index in named:
        last, passed = index, {}
        while last is not None and last not in images and last not in passed:
            passed[last] = None
            last = named.get(last)
        if last is None:
            *_, lacking = passed
            raise UserError(
                f"{path}, question {index}: its image is in row {lacking}, which is missing; use the "
                "whole file."
            )
        if last not in images:
            raise UserError(
                f"{path}, question {index}: the rows {', '.join(map(str, passed))} refer to one another for "
                "the image, but none has it; fetch the file again."
            )
        images |= dict.fromkeys(passed, images[last])
    return images


def _decoded(cell: str, index: int, path: str | Path) -> bytes:
    """Decode an image; an empty one is an error, since it would make a question without an image."""
    try:
        image = b64decode(cell, validate=True)
    except ValueError:
        image = b""
    if not image:
        raise UserError(f"{path}, question {index}: its image is not valid base64; fetch the file again.")
    return image


def _options(columns: dict) -> list[str]:
    """Return the texts of A, B, ... before the first that is not given."""
    texts = [columns.get(letter, "") for letter in COLUMNS]
    return texts[: next((i for i, text in enumerate(texts) if not _is_given(text)), len(texts))]


def _is_given(text: str) -> bool:
    return text.lower() not in ("", "nan", "none")


def load(folder: Path, name: str, language: str) -> list[dict]:
    """Read a tsv file's rows with "answer" (a letter) and "group" (the same for a question's rotations)."""
    _openpyxl()  # fails before any question is asked, if it is missing
    rows = read_questions(folder / name, INSTRUCTIONS[language])
    for row in rows:
        if absent := SCORED - row["columns"].keys():
            raise UserError(
                f"{folder / name} has no column {', '.join(sorted(absent))}; fetch the file again."
            )
        row |= {"answer": row["columns"]["answer"], "group": row["question_id"] % ROTATION}
    return rows


def score(rows: list[dict], answers: dict) -> Scores:
    said = {row["question_id"]: letter_of(answers[row["question_id"]], len(row["options"])) for row in rows}
    credit = credit_of(rows, said)
    table = circular_table(
        CircularAnswer(
            question=row["group"],
            correct=bool(credit[row["question_id"]]),
            first=row["question_id"] < ROTATION,
            labels=(row["columns"]["l2-category"], row["columns"]["category"]),
        )
        for row in rows
    )
    return Scores(table, ("overall", "circular"), credit, unparsed=list(said.values()).count(None))


def _openpyxl():
    try:
        import openpyxl
    except ImportError:
        raise UserError("MMBench's upload needs openpyxl; run pip install -e '.[eval]'.") from None
    return openpyxl


def write_submission(rows: list[dict], answers: dict, path: Path) -> None:
    """Write the server's spreadsheet: the question file's columns and the model's answers.

    Args:
        rows: with "question_id" and "columns".
    """
    openpyxl = _openpyxl()
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def text_cell(text: str):
        cell = openpyxl.cell.WriteOnlyCell(sheet, openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", text))
        cell.data_type = "s"  # so that "= 5" is not a formula
        return cell

    names = [name for name in rows[0]["columns"] if name not in NOT_UPLOADED] if rows else []
    header = [*names[:PREDICTION_COLUMN], "prediction", *names[PREDICTION_COLUMN:]]
    sheet.append([text_cell(name) for name in header])
    for row in rows:
        cells = [text_cell(row["columns"][name]) for name in names]
        cells[names.index("index")] = row["question_id"]
        cells.insert(PREDICTION_COLUMN, text_cell(answers[row["question_id"]]))
        sheet.append(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def export(rows: list[dict], answers: dict, folder: Path) -> list[Path]:
    path = folder / "answers_upload.xlsx"
    write_submission(rows, answers, path)
    return [path]


def _task(name: str, title: str, language: str, table: str) -> Task:
    return Task(
        name=name,
        title=title,
        folder="mmbench",
        needs=(
            File(table, f"from https://download.openmmlab.com/mmclassification/datasets/mmbench/{table}"),
        ),
        load=partial(load, name=table, language=language),
        score=score,
        export=export,
        submit_to="https://mmbench.opencompass.org.cn/mmbench-submission",
    )


TASK = _task("mmbench", "MMBench dev", "en", "mmbench_dev_20230712.tsv")
CN = _task("mmbench_cn", "MMBench-CN dev", "cn", "mmbench_dev_cn_20231003.tsv")
