"""Question files and answers files in JSON lines; a killed run leaves an answers file that can be continued.

A question row is {"question_id", "text", "image"?, ...}; an answer row is LLaVA's {"question_id", "prompt",
"text", "answer_id", "model_id", "metadata"}, followed by the question's "answer_fields", if it has any.
`metadata` holds the settings that made the answer, so that the file itself shows whether it may be continued.
"""

import glob
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.json_files import ID, GrowingFile, Line, lines_of, misfit, read_jsonl
from llava.text import replace_surrogates
from llava.wholefile import whole_file

# Forms of rows, as json_files.misfit takes them
QUESTION = {"question_id": ID, "text": str, "image?": (str, bytes, [(str, bytes)])}
ANSWER = {"question_id": ID, "text": str}
OWN_ANSWER = {**ANSWER, "prompt": str, "metadata?": {}}  # a row of an AnswerFile
ANOTHER_FILE = "delete it or choose another --answers-file or --output-dir"
ROW_START = b'{"question_id"'  # every line that AnswerFile writes starts with it
WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json")
SAMPLES, SAMPLE_BYTES = 32, 4096  # read from each weight file: enough to tell two trainings apart


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write rows as JSON lines, either all of them or none."""
    with whole_file(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load_questions(path: str | Path, **more) -> list[dict]:
    """Read the rows {"question_id", "text", "image"?} of a question file, in its order.

    One id may occur with several texts: the ids in TextVQA's published file are those of the images.

    Args:
        more: further fields that each row needs, and their forms.
    Raises:
        UserError: as for read_jsonl and check_questions.
    """
    rows, form = [], {**QUESTION, **more}
    for number, line in enumerate(lines_of(path), start=1):
        rows.append(line.row())
        if problem := misfit(rows[-1], form):
            raise line.error(f"question {number}: {problem}")
    return _askable(rows, path, key_of)


def load_answers(path: str | Path, form: dict = ANSWER) -> list[dict]:
    """Read the rows of an answers file, for scoring.

    Raises:
        UserError: as for read_jsonl, or if there are no rows.
    """
    rows = read_jsonl(path, form)
    if not rows:
        raise UserError(f"{path} contains no answers; run the evaluation to its end.")
    return rows


def key_of(question: dict) -> tuple:
    """Return the id and the text of a question, which together are unique in its file."""
    return question["question_id"], replace_surrogates(question["text"])


def check_questions(
    rows: list[dict], where: str | Path, key: Callable = itemgetter("question_id")
) -> list[dict]:
    """Check question rows and return them; lone surrogates, which no tokenizer accepts, become U+FFFD.

    Args:
        where: the file or benchmark that they are from, for messages.
        key: returns the key of a row, which must be unique.
    Raises:
        UserError: if there are no rows, a row does not have the form QUESTION, or a key occurs twice.
    """
    for number, row in enumerate(rows, start=1):
        if problem := misfit(row, QUESTION):
            raise UserError(f"{where}, question {number}: {problem}; correct the question.")
    return _askable(rows, where, key)


def _askable(rows: list[dict], where: str | Path, key: Callable) -> list[dict]:
    """Do the rest of check_questions for rows that have the form QUESTION."""
    if not rows:
        raise UserError(f"{where}: there are no questions.")
    for row in rows:
        row["text"] = replace_surrogates(row["text"])
        if isinstance(row["question_id"], str):
            row["question_id"] = replace_surrogates(row["question_id"])
    if repeated := _repeated(rows, key):
        raise UserError(
            f"{where}: question_id {_some(repeated)} occurs more than once; give each question its own id."
        )
    return rows


def images_of(question: dict) -> list[str | bytes]:
    """Return a question's images in their order in the text: paths, or the bytes of encoded files."""
    images = question.get("image")
    if not images:
        return []
    return images if isinstance(images, list) else [images]


def texts_by_id(questions: list[dict], answers: list[dict], path: str | Path = "") -> dict:
    """Return {question_id: answer text} in question order, for scoring.

    Args:
        questions: rows {"question_id"}.
        answers: rows {"question_id", "text"}, exactly one for each question.
        path: path of the answers file, for messages.
    Raises:
        UserError: for missing, duplicate or unknown ids.
    """
    answers_file = f"answers file {path}".strip()
    for rows, where in ((questions, "question file"), (answers, answers_file)):
        if repeated := _repeated(rows, itemgetter("question_id")):
            raise UserError(
                f"question {_some(repeated)} occurs more than once in the {where}; keep one row per id."
            )
    said = {row["question_id"]: row["text"] for row in answers}
    asked = {question["question_id"]: None for question in questions}
    if missing := [question_id for question_id in asked if question_id not in said]:
        raise UserError(
            f"question {_some(missing)} has no answer in the {answers_file}; run the evaluation to its end."
        )
    if unknown := [question_id for question_id in said if question_id not in asked]:
        raise UserError(
            f"question {_some(unknown)} is answered, but it is not in the question file; give the question "
            f"file of the {answers_file}."
        )
    return {question_id: said[question_id] for question_id in asked}


def get_chunk(rows: list, num_chunks: int, chunk_idx: int) -> list:
    """Split `rows` into `num_chunks` contiguous parts of nearly equal size; return part `chunk_idx`.

    Raises:
        UserError: if not 0 <= chunk_idx < num_chunks.
    """
    if not 0 <= chunk_idx < num_chunks:
        raise UserError(
            f"--chunk-idx must be in 0..{num_chunks - 1} for --num-chunks {num_chunks}, got {chunk_idx}."
        )
    return rows[len(rows) * chunk_idx // num_chunks : len(rows) * (chunk_idx + 1) // num_chunks]


def model_fingerprint(folder: str | Path) -> str:
    """Return a short hash of a folder's config and of samples of its weights, which tells trainings apart."""
    digest = hashlib.sha256()
    files = sorted({file for pattern in WEIGHT_FILES for file in Path(folder).glob(pattern)})
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:12]


class Kept(NamedTuple):
    """An answer and the position of its row; the rows are large, so they stay in the files."""

    text: str
    path: Path
    start: int  # bytes before the row
    size: int  # bytes


class AnswerFile:
    """The answers of one model under one set of settings, written line by line; a run can always be resumed.

    Several processes may write: process 0 appends to `path`, and process n to `path`.partn beside it. Opening
    reads all these files, however many processes there are now. It ignores what a kill or a power cut left
    after the last complete line: part of a line, NUL bytes. `finish` merges them, in question order.

    Args:
        path: the answers file; may exist.
        questions: the questions that it is to have answers to, in their final order.
        model_id: the model's name, kept in each row.
        settings: everything that changes answers (JSON values); kept in each row as `metadata`.
        process: number of this process, from 0.
    Attributes:
        answered: maps `key_of` of each answered question to its answer.
        notes: messages for the user about the files.
        recorded: the settings that all rows record.
    Raises:
        UserError: if a line is damaged, or its answer is from another model or other settings, to another
            question, or different from an earlier answer to the same question.
    """

    def __init__(
        self, path: str | Path, questions: list[dict], model_id: str, settings: dict, process: int = 0
    ):
        self.path = Path(path)
        self.model_id = model_id
        self.settings = json.loads(json.dumps(settings))  # as they are when read back
        part = self.path.with_name(f"{self.path.name}.part{process}") if process else self.path
        self._own = self._file(part)
        # in order; maps each key to itself, so that the answers share one object
        self._keys = {key: key for key in map(key_of, questions)}
        self._ids = {question_id for question_id, _ in self._keys}
        self._is_open = False
        self.answered = self._read()

    def _file(self, path: Path) -> GrowingFile:
        return GrowingFile(path, "an answers file", ROW_START, ANOTHER_FILE)

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(glob.escape(self.path.name) + ".part[0-9]*"))

    def _read(self) -> dict[tuple, Kept]:
        answered: dict[tuple, Kept] = {}
        self.notes = []
        num_older = 0
        for path in [self.path, *self._parts()]:
            file = self._own if path == self._own.path else self._file(path)
            for line, row in file.rows(OWN_ANSWER):
                key = self._check(line, row)
                now = Kept(row["text"], path, line.start, len(line.content))
                kept = answered.setdefault(key, now)
                # a kill during `finish` may leave the same row twice
                if kept.text != now.text:
                    raise line.error(f"it has a second and different answer to question {row['question_id']}")
                num_older += kept is now and "dtype" not in (row.get("metadata") or {})
            self.notes += [file.note] * bool(file.note)
        older = {name: value for name, value in self.settings.items() if name != "dtype"}
        self.recorded = older if num_older else self.settings
        if "dtype" in self.settings and num_older and len(answered) < len(self._keys):
            self.notes.append(
                f"{self.path}: {num_older} answers of an earlier version do not record their dtype. It was "
                f"fp16 on a GPU and fp32 on a CPU. The others are made in {self.settings['dtype']} (--dtype)."
            )
        return answered

    def _check(self, line: Line, row: dict) -> tuple:
        """Check a row, and return the key of the question that it answers."""
        question_id = row["question_id"]
        if row.get("model_id") != self.model_id or row.get("metadata") != self.settings:
            mine = {"model_id": self.model_id, **self.settings}
            theirs = as_recorded_now({"model_id": row.get("model_id"), **(row.get("metadata") or {})}, mine)
            if theirs != mine:
                raise line.error(f"its answer was made with other settings ({changes(theirs, mine)})")
        if question_id not in self._ids:
            raise line.error(
                f"it answers question {question_id!r}, which is not in this (chunk of the) question file"
            )
        if (question_id, row["prompt"]) not in self._keys:
            raise line.error(f"it answers question {question_id!r}, whose text was different")
        return self._keys[question_id, row["prompt"]]

    def append(self, question: dict, text: str) -> None:
        """Add one answer; it is in the file when this returns."""
        question_id = question["question_id"]
        name = replace_surrogates(f"{self.model_id}/{question_id}/{text}")
        row = {
            "question_id": question_id,
            "prompt": question["text"],
            "text": text,
            # made from the content, so that the same run writes the same file
            "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, name).hex,
            "model_id": self.model_id,
            "metadata": self.settings,
            **question.get("answer_fields", {}),
        }
        if not self._is_open:
            self._own.path.parent.mkdir(parents=True, exist_ok=True)
            self._own.cut()  # removes what a killed run left after the last complete line
            self._is_open = True
        content = replace_surrogates(json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._own.path.open("ab") as file:
            start = file.tell()
            file.write(content)
        self.answered[key_of(question)] = Kept(text, self._own.path, start, len(content))

    def rows(self) -> list[dict]:
        """Return {"question_id", "text"} for each answer; in question order after `finish`."""
        return [{"question_id": key[0], "text": kept.text} for key, kept in self.answered.items()]

    def finish(self) -> None:
        """Merge what all processes wrote into one file, in question order, with each question once.

        Only one process may call it, when no other process writes any more.
        """
        parts = self._parts()
        if parts:
            self.answered = self._read()
        self.answered = {key: self.answered[key] for key in self._keys if key in self.answered}
        with ExitStack() as files, whole_file(self.path) as scratch, scratch.open("wb") as whole:
            opened = {
                path: files.enter_context(path.open("rb"))
                for path in {kept.path for kept in self.answered.values()}
            }
            for key, kept in self.answered.items():
                file = opened[kept.path]
                file.seek(kept.start)
                self.answered[key] = kept._replace(path=self.path, start=whole.tell())
                whole.write(file.read(kept.size))
        for part in parts:
            part.unlink()


def as_recorded_now(before: dict, now: dict) -> dict:
    """Complete the settings that an earlier version recorded with those that it did not record.

    That version left the choice of attention to transformers, and did not quantise weights. Its dtype is not
    known, so the present one is assumed.
    """
    added = {name: value for name, value in now.items() if name == "dtype"}
    added |= {name: None for name in now if name in ("attn_implementation", "bits")}
    return {**added, **before}


def changes(before: dict, now: dict) -> str:
    """Describe the differences between two sets of settings in words."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def _repeated(rows: list[dict], key: Callable) -> list:
    """Return the ids of the rows whose key occurs more than once."""
    if len(set(map(key, rows))) == len(rows):
        return []
    counts = Counter(map(key, rows))
    return [row["question_id"] for row in {key(row): row for row in rows if counts[key(row)] > 1}.values()]


def _some(ids: list) -> str:
    return ", ".join(str(i) for i in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
