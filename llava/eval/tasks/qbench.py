"""Q-Bench, perception: multiple choice on sharpness, light, colour and other low-level properties of images.

Source: Wu et al., "Q-Bench: a benchmark for general-purpose foundation models on low-level vision", 2024.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import exact_match, mean_table
from llava.eval.records import write_jsonl
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import LETTERS, credit_of, letter_of, read_json

QUESTION = {"question": str, "img_path": str, "candidates": [str, ...]}
DEV_QUESTION = {**QUESTION, "correct_ans": str}
CHOOSE = {
    "en": "\nChoose between one of the options as follows:\n",
    "zh": "\\在下列选项中选择一个:\n",  # LLaVA's prompt has this backslash, and so have published scores
}


def load(folder: Path, name: str, language: str, has_answers: bool) -> list[dict]:
    """Read question rows with "published" (the file's own row) and, if has_answers, "answer" (a letter)."""
    rows = []
    for i, published in enumerate(read_json(folder / name, [DEV_QUESTION if has_answers else QUESTION])):
        options = published["candidates"]
        listed = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, options, strict=False))
        row = {
            "question_id": i,
            "image": f"images_llvisionqa/{published['img_path']}",
            "text": f"{published['question']}{CHOOSE[language]}{listed}",
            "published": published,
        }
        if has_answers:
            if published["correct_ans"] not in options:
                raise UserError(
                    f"{folder / name}, question {i}: its correct_ans is not one of its candidates."
                )
            row["answer"] = LETTERS[options.index(published["correct_ans"])]
        rows.append(row)
    return rows


def option_of(text: str, options: list[str]) -> str | None:
    """Return the letter that an answer names, or the letter of the option whose text it repeats."""
    repeated = [letter for letter, option in zip(LETTERS, options, strict=False) if exact_match(text, option)]
    return letter_of(text, len(options)) or (repeated[0] if repeated else None)


def score(rows: list[dict], answers: dict) -> Scores:
    """Return the accuracy over all, and by the numbers that the file gives as type and concern."""
    said = {
        row["question_id"]: option_of(answers[row["question_id"]], row["published"]["candidates"])
        for row in rows
    }
    credit = credit_of(rows, said)

    def parts(published: dict) -> list[str]:
        return [f"{key} {published[key]}" for key in ("type", "concern") if key in published]

    table = mean_table("accuracy", ((credit[row["question_id"]], parts(row["published"])) for row in rows))
    return Scores(table, ("overall", "accuracy"), credit, unparsed=list(said.values()).count(None))


def export(rows: list[dict], answers: dict, folder: Path) -> list[Path]:
    """Write Q-Bench's file: its own rows, with the model's answers as "response"."""
    path = folder / "answers_upload.jsonl"
    write_jsonl(path, [row["published"] | {"response": answers[row["question_id"]]} for row in rows])
    return [path]


def _task(name: str, title: str, file: str, language: str, scorer: Callable | None) -> Task:
    hub = "https://huggingface.co/datasets/teowu/LLVisionQA-QBench"
    return Task(
        name=name,
        title=title,
        folder="qbench",
        needs=(
            File(file, f"from {hub}"),
            File("images_llvisionqa", f"unpack images_llvisionqa.tar of {hub}"),
        ),
        load=partial(load, name=file, language=language, has_answers=scorer is not None),
        max_new_tokens=128,
        score=scorer,
        export=export,
        submit_to="Q-Bench's authors, see https://github.com/Q-Future/Q-Bench",
    )


TASK = _task("qbench", "Q-Bench dev", "llvisionqa_dev.json", "en", score)
TEST = _task("qbench_test", "Q-Bench test", "llvisionqa_test.json", "en", None)
ZH = _task("qbench_zh", "Q-Bench-zh dev", "质衡-问答-验证集.json", "zh", score)
ZH_TEST = _task("qbench_zh_test", "Q-Bench-zh test", "质衡-问答-测试集.json", "zh", None)
