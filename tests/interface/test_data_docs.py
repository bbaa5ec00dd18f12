"""The examples in docs/data.md and docs/finetune_custom_data.md are valid, and their programs run."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from llava.data.validate import validate
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("data.md", "finetune_custom_data.md")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "playground/data/mine/images"):
        Path(folder).mkdir(parents=True)
        for name in ("bus.png", "dog.png"):
            Image.new("RGB", (20, 30), "red").save(f"{folder}/{name}")
    return tmp_path


@pytest.mark.parametrize(
    ("language", "number", "version", "num_records"),
    [
        *(("json", 0, "v1", 3), ("json", 1, "plain", 1), ("json", 2, "v1", 1), ("jsonl", 0, "v1", 2)),
        *(("json", 3, "v1", 1), ("json", 4, "v1", 2), ("jsonl", 1, "v1", 2)),
    ],
)
def test_each_shown_format_is_what_training_takes(images, language, number, version, num_records):
    Path("data").write_text(blocks("data.md", language)[number])
    problems = []
    counts = validate(["data"], "images", version, check_images=True, report=problems.append)
    assert problems == []
    assert counts["records"] == num_records


@pytest.mark.parametrize(
    ("number", "path", "turns"), [(0, "pairs.parquet", 4), (1, "saved", 2)], ids=["parquet", "datasets"]
)
def test_each_shown_table_is_what_training_takes(images, number, path, turns):
    exec(blocks("data.md", "python")[number], {})
    problems = []
    counts = validate([path], check_images=True, report=problems.append)
    assert problems == []
    assert counts == {"records": 1, "images": 1, "turns": turns}


def test_each_shown_example_is_read():
    assert [len(blocks("data.md", language)) for language in ("json", "jsonl", "python")] == [5, 2, 3]


def test_the_shown_program_writes_shards_of_the_same_records(images):
    Path("train.json").write_text(blocks("data.md", "json")[0])
    exec(blocks("data.md", "python")[2], {})
    counts = validate(["shards/{000000..000000}.tar"], check_images=True)
    assert counts == {"records": 3, "images": 3, "turns": 8}


def test_the_shown_table_becomes_records_and_questions(images):
    mine = Path("playground/data/mine")
    table = blocks("finetune_custom_data.md", "csv")[0]
    more = "".join(f"bus.png,Again {i}?,Yes.\n" for i in range(2)) + "".join(
        f"{i}.png,What?,It.\n" for i in range(4)
    )
    (mine / "questions.csv").write_text(table + more)
    (program,) = blocks("finetune_custom_data.md", "python")
    exec(program, {})
    tests = [json.loads(line) for line in (mine / "test.jsonl").read_text().splitlines()]
    assert {test["image"] for test in tests} == {"bus.png"}
    assert [test["text"] for test in tests][:2] == ["What colour is the bus?", "How many wheels are visible?"]
    counts = validate([str(mine / "train.json")])
    assert counts == {"records": 5, "images": 5, "turns": 10}


@pytest.mark.parametrize("page", PAGES)
def test_each_flag_named_exists(page):
    known = {f"--{f.name}" for cls in (ModelArguments, DataArguments, TrainingArguments) for f in fields(cls)}
    known |= {"--records"}  # a flag of the benchmark
    known |= {
        "--model-path",
        "--image-folder",
        "--question-file",
        "--answers-file",
    }  # flags of model_vqa_loader
    assert set(re.findall(r"--[a-z][\w-]+", (DOCS / page).read_text())) <= known
