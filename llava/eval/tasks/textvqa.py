"""TextVQA val: questions on text in images; the prompts include the words that an OCR system read there.

Source: Singh et al., "Towards VQA models that can read", 2019; the question file is LLaVA-1.5's.
"""

import re
from collections import defaultdict
from pathlib import Path

from llava.errors import UserError
from llava.eval.json_files import ID
from llava.eval.metrics import vqa_soft_accuracy
from llava.eval.records import load_questions
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import EVAL_ZIP, images_in, open_answer_scores, read_json

QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
IMAGES = "train_images"
ANNOTATION = {"question_id": ID, "image_id": ID, "question": str, "answers": [str, ...]}


def question_of(prompt: str) -> str:
    """Return only the question, in lower case, of a prompt in any of the three layouts in LLaVA's files.

    It is the first line; or the second, if the first begins with "Reference OCR token:"; or the text between
    "Question:" and "Short answer:".
    """
    if match := re.search(r"^OCR tokens: .*Question: (.*?) Short answer:", prompt, re.DOTALL):
        return match[1].strip().lower()
    lines = [*prompt.split("\n"), ""]
    return lines[lines[0].startswith("Reference OCR token:")].strip().lower()


def find_annotations(path: str | Path, asked: list[tuple[str, str]]) -> list[dict]:
    """Return the annotation of each (image id, prompt); published files have no other id.

    Raises:
        UserError: if a prompt has no annotation, or an annotation has no prompt.
    """
    left = defaultdict(list)
    for annotation in read_json(path, {"data": [ANNOTATION]})["data"]:
        left[annotation["image_id"], annotation["question"].strip().lower()].append(annotation)
    found = []
    for image_id, prompt in asked:
        key = (image_id, question_of(prompt))
        if not left[key]:
            raise UserError(
                f"{path} has no annotation, or too few, for image {image_id}, {key[1]!r}; fetch question "
                "and annotation files that belong together."
            )
        found.append(left[key].pop(0))
    if unasked := [key for key, annotations in left.items() if annotations]:
        raise UserError(
            f"{len(unasked)} question(s) of {path} were not asked, the first one on image "
            f"{unasked[0][0]}; use the whole question file, and run the evaluation to its end."
        )
    return found


def load(folder: Path) -> list[dict]:
    """Return question rows with the annotations' ids, and with "answer" (ten texts)."""
    rows = images_in(IMAGES, load_questions(folder / QUESTIONS, image=str))
    found = find_annotations(folder / ANNOTATIONS, [(row["question_id"], row["text"]) for row in rows])
    return [
        row | {"question_id": known["question_id"], "answer": known["answers"]}
        for row, known in zip(rows, found, strict=True)
    ]


def score(rows: list[dict], answers: dict) -> Scores:
    return open_answer_scores(rows, answers, vqa_soft_accuracy)


TASK = Task(
    name="textvqa",
    title="TextVQA val",
    folder="textvqa",
    needs=(
        File(QUESTIONS, EVAL_ZIP),
        File(ANNOTATIONS, "from https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json"),
        File(IMAGES, "unpack https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip"),
    ),
    load=load,
    max_new_tokens=128,
    score=score,
)
