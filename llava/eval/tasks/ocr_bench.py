"""OCRBench: 1000 questions on text in images, one point each.

Source: Liu et al., "OCRBench: on the hidden mystery of OCR in large multimodal models", 2023; the
prompts are TokenPacker's.
"""

from pathlib import Path

from llava.eval.metrics import OCRBenchAnswer, ocrbench_correct, ocrbench_table
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import SINGLE_WORD, images_in, read_json

QUESTION = {
    "image_path": str,
    "question": str,
    "answers": (str, [str, ...]),
    "dataset_name": str,
    "type": str,
}
QUESTIONS, IMAGES = "OCRBench.json", "OCRBench_Images"


def read_questions(path: str | Path) -> list[dict]:
    """Read rows {"question_id": index in the file, "text", "image", "answer", "published": its own row}."""
    return [
        {
            "question_id": i,
            "image": published["image_path"],
            "text": f"{published['question']}\n{SINGLE_WORD}",
            "answer": published["answers"],
            "published": published,
        }
        for i, published in enumerate(read_json(path, [QUESTION]))
    ]


def load(folder: Path) -> list[dict]:
    return images_in(IMAGES, read_questions(folder / QUESTIONS))


def score(rows: list[dict], answers: dict) -> Scores:
    credit = {
        row["question_id"]: float(
            ocrbench_correct(row["published"]["dataset_name"], row["answer"], answers[row["question_id"]])
        )
        for row in rows
    }
    table = ocrbench_table(
        OCRBenchAnswer(row["published"]["type"], int(credit[row["question_id"]])) for row in rows
    )
    return Scores(table, ("overall", "points"), credit, points=("points",))


_OCRBENCH = "see https://github.com/Yuliang-Liu/MultimodalOCR, folder OCRBench"
TASK = Task(
    name="ocr_bench",
    title="OCRBench",
    folder="OCRBench",
    needs=(File(QUESTIONS, _OCRBENCH), File(IMAGES, _OCRBENCH)),
    load=load,
    max_new_tokens=128,
    score=score,
)
