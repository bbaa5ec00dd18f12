"""Like benchmarks.py, for benchmarks with a judge, a measure of similarity or several images."""

import io
from pathlib import Path

import pyarrow
from benchmarks import save_images, write_json, write_jsonl
from PIL import Image
from pyarrow import parquet


def llava_bench(root: Path) -> Path:
    """One question for each category; the last context is a list of sentences."""
    folder = root / "llava-bench-in-the-wild"
    categories = ("conv", "detail", "complex")
    rows = [
        {"question_id": i, "image": f"00{i}.jpg", "text": f"What is {i}, größer?", "category": category}
        for i, category in enumerate(categories)
    ]
    write_jsonl(folder / "questions.jsonl", rows)
    captions = ["A street.", "A cat\nand a dog.", ["First.", "Second."]]
    write_jsonl(
        folder / "context.jsonl",
        [{"id": i, "image": f"00{i}.jpg", "caption": captions[i]} for i in range(3)],
    )
    write_jsonl(
        folder / "answers_gpt4.jsonl",
        [
            {"question_id": i, "prompt": rows[i]["text"], "answer_id": f"a{i}", "model_id": "gpt-4"}
            | {"text": f"It is {i}.", "metadata": {}}
            for i in range(3)
        ],
    )
    save_images(folder / "images", *(row["image"] for row in rows))
    return folder


def mmvet(root: Path) -> Path:
    folder = root / "mmvet"
    known = [
        ("What is x in the equation?", "-1<AND>-5", ["math", "ocr"]),
        ("What occasions would someone use this meme?", "to be <OR> not to be", ["rec", "know", "gen"]),
        ("Wie viele Äpfel?", "2", ["rec"]),
    ]
    rows = {
        f"v1_{i}": {
            "imagename": f"v1_{i}.png",
            "question": question,
            "answer": answer,
            "imagesource": "https://example.org",
            "capability": capability,
        }
        for i, (question, answer, capability) in enumerate(known)
    }
    write_json(folder / "mm-vet.json", rows)
    save_images(folder / "images", *(row["imagename"] for row in rows.values()))
    return folder


def _qbench(root: Path, name: str, with_answers: bool) -> Path:
    folder = root / "qbench"
    known = [
        ("How clear is it?", ["Clear", "Blurry", "Medium"], "Blurry", 2, 0),
        ("Is it dark?", ["Yes", "No"], "Yes", 0, 1),
        ("What is worst?", ["Noise", "Blur", "Light", "Colour"], "Colour", 1, 0),
    ]
    rows = [
        {"img_path": f"0{i}.jpg", "question": question, "candidates": options, "type": kind}
        | {"concern": concern, **({"correct_ans": answer} if with_answers else {})}
        for i, (question, options, answer, kind, concern) in enumerate(known)
    ]
    write_json(folder / name, rows)
    save_images(folder / "images_llvisionqa", *(row["img_path"] for row in rows))
    return folder


def qbench(root: Path) -> Path:
    return _qbench(root, "llvisionqa_dev.json", True)


def qbench_test(root: Path) -> Path:
    return _qbench(root, "llvisionqa_test.json", False)


def qbench_zh(root: Path) -> Path:
    return _qbench(root, "质衡-问答-验证集.json", True)


def qbench_zh_test(root: Path) -> Path:
    return _qbench(root, "质衡-问答-测试集.json", False)


def _docvqa_row(number: int, question: str) -> dict:
    return {
        "questionId": number,
        "question": question,
        "image": f"documents/page_{number}.png",
        "docId": 14465,
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": "81",
    }


def docvqa(root: Path) -> Path:
    folder = root / "docvqa"
    known = [
        (49153, "What is the ‘actual’ value?", ["0.28"], ["figure/diagram", "layout"]),
        (24580, "Who signed?", ["Müller & Co", "Mueller"], ["handwritten"]),
        (57349, "Where?", ["Rome"], ["layout"]),
    ]
    data = [
        _docvqa_row(number, question) | {"question_types": types, "answers": answers, "data_split": "val"}
        for number, question, answers, types in known
    ]
    named = {"dataset_name": "docvqa", "dataset_split": "val", "dataset_version": "1.0"}
    write_json(folder / "val_v1.0_withQT.json", named | {"data": data})
    save_images(folder / "images", *(f"page_{number}.png" for number, *_ in known))
    return folder


def docvqa_test(root: Path) -> Path:
    folder = root / "docvqa"
    data = [_docvqa_row(number, "Which?") | {"data_split": "test"} for number in (57344, 57345)]
    write_json(folder / "test_v1.0.json", {"dataset_split": "test", "data": data})
    save_images(folder / "images", "page_57344.png", "page_57345.png")
    return folder


def ocr_bench(root: Path) -> Path:
    folder = root / "OCRBench"
    known = [
        ("IIIT5K", "Regular Text Recognition", ["CENTRE"]),
        ("WordArt", "Artistic Text Recognition", "Café"),
        ("docVQA", "Doc-oriented VQA", ["4.7", "4,7"]),
        ("HME100k", "Handwritten Mathematical Expression Recognition", ["\\frac { a } { B }"]),
    ]
    rows = [
        {"dataset_name": name, "type": kind, "id": 0, "question": "what is written in the image?"}
        | {"answers": answers, "image_path": f"{name}/test/0.png"}
        for name, kind, answers in known
    ]
    write_json(folder / "OCRBench.json", rows)
    save_images(folder / "OCRBench_Images", *(row["image_path"] for row in rows))
    return folder


def _encoded(color: str) -> dict:
    buffer = io.BytesIO()
    Image.new("RGBA", (20, 30), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{color}.png"}


def mmmu(root: Path) -> Path:
    """Questions with an image that is not mentioned, with images in the options, and without options."""
    red, blue = _encoded("red"), _encoded("blue")
    choice = {"question_type": "multiple-choice"}
    rows = {
        "Accounting": [
            {"id": "validation_Accounting_1", "question": "What is <image 1>?", "image_1": red, **choice}
            | {"options": "['$6', \"it's $7\"]", "answer": "B"},
            {"id": "validation_Accounting_2", "question": "How much?", "image_1": red}
            | {"question_type": "open", "options": "[]", "answer": "['8,000', 'eight thousand']"},
        ],
        "Art_Theory": [
            {"id": "validation_Art_Theory_10", "question": "Which fits <image 1>?", "image_1": red}
            | {"image_2": blue, "options": "['<image 2>', '<image 1>', 'neither']", "answer": "A", **choice},
        ],
    }
    folder = root / "MMMU"
    pictures = {f"image_{i}": None for i in range(1, 8)}
    bytes_and_path = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = ("id", "question", "options", "explanation", "answer", "subfield", "question_type")
    schema = pyarrow.schema(
        [*((name, pyarrow.string()) for name in names), *((name, bytes_and_path) for name in pictures)]
    )
    for subject, questions in rows.items():
        (folder / subject).mkdir(parents=True)
        table = pyarrow.Table.from_pylist([pictures | row for row in questions], schema)
        parquet.write_table(table, folder / subject / "validation-00000-of-00001.parquet")
    return folder


BUILDERS = {
    "llava_bench": llava_bench,
    "mmvet": mmvet,
    "qbench": qbench,
    "qbench_test": qbench_test,
    "qbench_zh": qbench_zh,
    "qbench_zh_test": qbench_zh_test,
    "docvqa": docvqa,
    "docvqa_test": docvqa_test,
    "ocr_bench": ocr_bench,
    "mmmu": mmmu,
}
