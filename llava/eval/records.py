"""Questions in, answers out: JSON-lines files that survive being killed and are never mixed up.

A question row is {"question_id", "text", "image"?, ...}; an answer row is LLaVA's {"question_id", "prompt",
"text", "answer_id", "model_id", "metadata"}. `metadata` holds the settings that made the answer: a file tells
by itself whether it may be continued.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path

ROW_START = b'{"question_id"'  # of every line that AnswerFile writes
WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json")
SAMPLES, SAMPLE_BYTES = 32, 4096  # read from each weight file: enough to tell two trainings apart


def read_jsonl(path: str | Path) -> list[dict]:
    """All rows of a JSON-lines file.

    Raises:
        ValueError: naming the file (missing) or the line (not a JSON object).
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file.")
    return parse_jsonl(Path(path).read_text(encoding="utf-8"), path)


def parse_jsonl(text: str, path: str | Path) -> list[dict]:
    """The objects of JSON lines; `path` is for messages, as in read_jsonl."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}); one object a line is expected."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
        rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def load_questions(path: str | Path) -> list[dict]:
    """Rows {"question_id", "text", "image"?} of a question file, in its order.

    Raises:
        ValueError: for a row without an id or a text, or an id that stands twice; names file and rows.
    """
    rows = read_jsonl(path)
    seen, repeated = set(), []
    for number, row in enumerate(rows, start=1):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(
                f'{path}, question {number}: needs "question_id" and a string "text", has {sorted(row)}.'
            )
        if row["question_id"] in seen:
            repeated.append(row["question_id"])
        seen.add(row["question_id"])
    if repeated:
        shown = ", ".join(str(i) for i in repeated[:5]) + (", ..." if len(repeated) > 5 else "")
        raise ValueError(f"{path}: question_id {shown} stands more than once; give each question its own id.")
    return rows


def get_chunk(rows: list, num_chunks: int, chunk_idx: int) -> list:
    """Part `chunk_idx` of `num_chunks` contiguous parts of nearly equal size; joined they are `rows`.

    Raises:
        ValueError: if not 0 <= chunk_idx < num_chunks.
    """
    if not 0 <= chunk_idx < num_chunks:
        raise ValueError(
            f"--chunk-idx must be in 0..{num_chunks - 1} for --num-chunks {num_chunks}, got {chunk_idx}."
        )
    return rows[len(rows) * chunk_idx // num_chunks : len(rows) * (chunk_idx + 1) // num_chunks]


def model_fingerprint(folder: str | Path) -> str:
    """A short hash of a folder's config and of samples of its weights: another training, another value."""
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


class AnswerFile:
    """The answers of one model under one set of settings, written line by line, resumable at any point.

    Opening drops a last line that was cut off. `answered` maps question ids to kept rows.

    Args:
        path: the answers file; may exist.
        questions: the rows that it is to hold, in their final order.
        model_id: the model's name, kept in each row.
        settings: whatever changes answers (JSON values); kept in each row as `metadata`.
    Raises:
        ValueError: if the file holds answers of another model, other settings or other questions.
    """

    def __init__(self, path: str | Path, questions: list[dict], model_id: str, settings: dict):
        self.path = Path(path)
        self.model_id = model_id
        self.settings = json.loads(json.dumps(settings))  # as they will be read back
        self._order = [question["question_id"] for question in questions]
        self.answered: dict = {}
        if self.path.exists():
            whole, rest = _split_cut_off_line(self.path)
            texts = {question["question_id"]: question["text"] for question in questions}
            for row in whole:
                self._check(row, texts)
                self.answered[row["question_id"]] = row
            if rest:
                os.truncate(self.path, self.path.stat().st_size - rest)

    def _check(self, row: dict, texts: dict) -> None:
        remedy = "delete it or choose another --answers-file."
        question_id = row.get("question_id")
        mine = {"model_id": self.model_id, **self.settings}
        theirs = {"model_id": row.get("model_id"), **(row.get("metadata") or {})}
        if theirs != mine:
            names = [name for name in {**mine, **theirs} if theirs.get(name) != mine.get(name)]
            changes = ", ".join(f"{name} was {theirs.get(name)!r}, now {mine.get(name)!r}" for name in names)
            raise ValueError(f"{self.path} holds answers made otherwise ({changes}); {remedy}")
        if question_id not in texts:
            raise ValueError(
                f"{self.path} answers question {question_id}, which is not in this (chunk of the) question "
                f"file; {remedy}"
            )
        if row.get("prompt") != texts[question_id]:
            raise ValueError(
                f"{self.path} answers question {question_id} with another text than now; {remedy}"
            )

    def append(self, question: dict, text: str) -> None:
        """Add one answer; it is on disk when this returns to the caller."""
        question_id = question["question_id"]
        row = {
            "question_id": question_id,
            "prompt": question["text"],
            "text": text,
            # made from the content, so that the same run writes the same file
            "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, f"{self.model_id}/{question_id}/{text}").hex,
            "model_id": self.model_id,
            "metadata": self.settings,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.answered[question_id] = row

    def finish(self) -> None:
        """Rewrite the file in question order, each question once."""
        rows = (self.answered[i] for i in self._order if i in self.answered)
        write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _split_cut_off_line(path: Path) -> tuple[list[dict], int]:
    """The rows of an answers file's complete lines, and how many bytes of a cut-off one follow them."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    cut_off = content[end:]
    if not cut_off.startswith(ROW_START[: len(cut_off)]):
        raise ValueError(f"{path} does not look like an answers file; choose another --answers-file.")
    return parse_jsonl(content[:end].decode("utf-8"), path), len(cut_off)
