"""MME: two yes/no questions per image, one with each answer; ten tasks of perception, four of cognition.

Source: Fu et al., "MME: a comprehensive evaluation benchmark for multimodal large language models", 2023; the
question file is LLaVA-1.5's.
"""

from collections import Counter, defaultdict
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import MMEAnswer, mme_table, parse_mme_answer
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import EVAL_ZIP, SINGLE_WORD, credit_of, images_in
from llava.textfile import read_text
from llava.wholefile import write_text

QUESTIONS = "llava_mme.jsonl"
IMAGES = "MME_Benchmark_release_version"
YES_OR_NO = "Please answer yes or no."


def load(folder: Path) -> list[dict]:
    """Return question rows with "answer" ("yes" or "no"), "line" (MME's own text), "category" and "file".

    In the published file both questions of an image have the image's id. Here each has an id of its own, and
    the image as "group".
    """
    truth, times, rows = {}, Counter(), []
    for row in images_in(IMAGES, load_questions(folder / QUESTIONS, question_id=str, image=str)):
        image = row["question_id"]
        category, name = image.split("/")[0], Path(image).stem + ".txt"
        if image not in truth:
            truth[image] = _read_truth(folder / IMAGES / category, name)
        if _words(row["text"]) not in truth[image]:
            raise UserError(
                f"{folder / IMAGES / category}: {name} has no question {_words(row['text'])!r}; fetch "
                "question file and benchmark again."
            )
        line = truth[image][_words(row["text"])]
        times[image] += 1
        rows.append(
            row
            | {"question_id": f"{image}#{times[image]}", "group": image, "category": category, "file": name}
            | {"line": line, "answer": line.split("\t")[1].lower()}
        )
    return rows


def _read_truth(folder: Path, name: str) -> dict[str, str]:
    """Read an image's {words of a question: "question<tab>answer"}; the file may be one folder deeper."""
    deeper = folder / "questions_answers_YN"
    path = (deeper if deeper.is_dir() else folder) / name
    if not path.is_file():
        raise UserError(f"{path} does not exist; fetch the benchmark again.")
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if any(line.count("\t") != 1 for line in lines):
        raise UserError(
            f"{path}: each line must have a question, a tab and an answer; fetch the benchmark again."
        )
    return {_words(line.split("\t")[0]): line for line in lines}


def _words(text: str) -> str:
    """Return a question without its instruction, for which MME and LLaVA use different words."""
    return " ".join(text.replace(SINGLE_WORD, "").replace(YES_OR_NO, "").split())


def score(rows: list[dict], answers: dict) -> Scores:
    """Return the points of the tasks, of perception and of cognition."""
    said = {question_id: parse_mme_answer(text) for question_id, text in answers.items()}
    credit = credit_of(rows, said)
    table = mme_table(
        MMEAnswer(row["category"], row["group"], bool(credit[row["question_id"]])) for row in rows
    )
    headline = "perception" if "perception" in table else "cognition"  # --limit may leave only one
    return Scores(
        table, (headline, "score"), credit, points=("score",), unparsed=list(said.values()).count("other")
    )


def export(rows: list[dict], answers: dict, folder: Path) -> list[Path]:
    """Write one file per task for MME's calculation.py, with an image's two questions in adjacent lines."""
    lines = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["group"]):
        said = " ".join(answers[row["question_id"]].split())  # a tab or a new line would end the field
        lines[row["category"]].append("\t".join((row["file"], row["line"], said)) + "\n")
    paths = {folder / "eval_tool" / f"{category}.txt": "".join(part) for category, part in lines.items()}
    for path, text in paths.items():
        write_text(path, text)
    return list(paths)


_MME = "see https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
TASK = Task(
    name="mme",
    title="MME",
    folder="MME",
    needs=(File(QUESTIONS, EVAL_ZIP), File(IMAGES, _MME)),
    load=load,
    score=score,
    export=export,
    submit_to="--results_dir of MME's own eval_tool/calculation.py",
)
