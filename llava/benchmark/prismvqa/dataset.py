"""PrismVQA as files: pictures, training records in LLaVA's format, test questions and scenes.

The folder appears only when it is complete. It contains meta.json, train.json, test.jsonl,
{train,test}/images/*.webp and {train,test}/scenes.jsonl.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.benchmark.prismvqa.draw import draw_scene
from llava.benchmark.prismvqa.questions import FAMILIES, FORMS, Question, ask_all
from llava.benchmark.prismvqa.scene import SPLITS, Scene, generator, sample_scene
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.eval.tasks.shared import SINGLE_WORD
from llava.wholefile import whole_file, write_text

VERSION = 1  # goes up when a picture or a question changes
MIN_SIZE = 112  # pixels; in a smaller picture printed text could not be read
META, TRAIN, TEST, SCENES = "meta.json", "train.json", "test.jsonl", "scenes.jsonl"
# Lossless, since questions are about the pixels of a pattern; smaller than PNG at a similar speed
SAVE: dict[str, Any] = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
SUFFIX = ".webp"
CHUNK = 32  # scenes that a process gets at once


@dataclass(frozen=True)
class Example:
    """A picture's file and the questions about it."""

    image: Path
    questions: list[Question]


def write_dataset(
    output_dir: str | Path,
    *,
    num_train: int,
    num_test: int,
    size: int,
    seed: int,
    rounds: int = 1,
    workers: int | None = None,
) -> bool:
    """Make the data set in a folder beside `output_dir`, which is renamed when it is complete.

    Pictures of an interrupted run with the same settings are kept. The files do not depend on `workers`.

    Args:
        num_train, num_test: number of scenes in each split.
        size: side of the pictures in pixels.
        seed: seed of everything, 0 or more.
        rounds: how often a question of each family is asked about a training scene; once about a test scene.
        workers: number of processes; None: one for each core.
    Returns:
        Whether anything was written: False if the same data set already exists.
    Raises:
        UserError: if a number is out of range, or the folder contains something else.
    """
    output_dir = Path(output_dir)
    workers = _checked_workers(workers)
    recipe = _recipe(num_train, num_test, size, seed, rounds)
    if _is_there(output_dir, recipe):
        return False
    unfinished = output_dir.with_name(output_dir.name + ".partial")
    _keep_only(unfinished, recipe)
    counts = {}
    for split, number, asked in (("train", num_train, rounds), ("test", num_test, 1)):
        (unfinished / split / "images").mkdir(parents=True, exist_ok=True)
        made = make_rows(split, number, seed, workers, folder=unfinished, size=size, rounds=asked)
        counts[split] = _write_split(unfinished, split, made)
    meta = recipe | {"format": "lossless WebP, RGB", "families": _families(counts)}
    (unfinished / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    (unfinished / "recipe.json").unlink()
    unfinished.rename(output_dir)
    return True


def load_split(output_dir: str | Path, split: str) -> list[Example]:
    """The pictures and questions of a split, in the order of its scenes.

    Raises UserError if the split is neither "train" nor "test", or the folder has no data set.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    output_dir = Path(output_dir)
    if not (output_dir / META).is_file():
        raise UserError(
            f"{output_dir} contains no PrismVQA; run python -m llava.benchmark.prismvqa --output_dir "
            f"{output_dir}."
        )
    with (output_dir / split / SCENES).open(encoding="utf-8") as lines:
        return [
            Example(output_dir / row["image"], [Question(**question) for question in row["questions"]])
            for row in map(json.loads, lines)
        ]


def make_rows(
    split: str,
    number: int,
    seed: int,
    workers: int | None,
    *,
    folder: Path | None = None,
    size: int = 0,
    rounds: int = 1,
) -> Iterator[dict]:
    """Yield the rows of a split's scene file in order: {"index", "image", "scene", "questions"}.

    Args:
        folder: where to draw the missing pictures, with a side of `size` pixels; None: draw none.
        rounds: how often a question of each family is asked about a scene; repeated questions are left out.
    """
    workers = min(_checked_workers(workers), -(-number // CHUNK))
    make = partial(_make_row, split=split, seed=seed, folder=folder, size=size, rounds=rounds)
    progress = {"desc": f"PrismVQA {split}", "total": number, "unit": "scene"}
    if workers == 1:
        yield from tqdm(map(make, range(number)), **progress)
        return
    # spawned, not forked: the caller may hold threads or a GPU
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from tqdm(pool.map(make, range(number), chunksize=CHUNK), **progress)


def ask_split(split: str, number: int, seed: int, workers: int | None = None) -> list[Question]:
    """The questions about a split's first scenes; no picture is drawn."""
    return [
        Question(**question)
        for row in make_rows(split, number, seed, workers)
        for question in row["questions"]
    ]


def _make_row(index: int, split: str, seed: int, folder: Path | None, size: int, rounds: int) -> dict:
    scene = sample_scene(seed, split, index)
    image = f"{split}/images/{index:06d}{SUFFIX}"
    if folder and not (folder / image).exists():
        _draw_file(scene, folder / image, size)
    questions: dict[str, Question] = {}
    for number in range(rounds):
        for question in ask_all(scene, generator(seed, split, index, 1 + number)):
            questions.setdefault(question.text, question)
    return {
        "index": index,
        "image": image,
        "scene": asdict(scene),
        "questions": [asdict(question) for question in questions.values()],
    }


def _draw_file(scene: Scene, path: Path, size: int) -> None:
    with whole_file(path, synced=False) as scratch:
        draw_scene(scene, size).save(scratch, **SAVE)


def _checked_workers(workers: int | None) -> int:
    if workers is None:
        return os.cpu_count() or 1
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}.")
    return workers


def _recipe(num_train: int, num_test: int, size: int, seed: int, rounds: int) -> dict:
    """The settings that determine the content of the files. Raises UserError if one is too small."""
    recipe: dict = {"name": "PrismVQA", "version": VERSION}
    for name, value, least in (
        ("seed", seed, 0),
        ("size", size, MIN_SIZE),
        ("num_train", num_train, 1),
        ("num_test", num_test, 1),
        ("rounds", rounds, 1),
    ):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}.")
        recipe[name] = value
    return recipe


def _read_recipe(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _is_there(folder: Path, recipe: dict) -> bool:
    """Whether the folder is this data set (False: it is missing or empty). Raises UserError for any other."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    meta = _read_recipe(folder / META) or {}
    if differences := {key: meta.get(key) for key in recipe if meta.get(key) != recipe[key]}:
        wanted = {key: recipe[key] for key in differences}
        raise UserError(
            f"{folder} contains other data ({differences}, expected {wanted}); remove it or choose another "
            "--output_dir."
        )
    return True


def _keep_only(folder: Path, recipe: dict) -> None:
    """Make the unfinished folder anew, unless a run with the same recipe has left it."""
    if _read_recipe(folder / "recipe.json") != recipe:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")


def _write_split(folder: Path, split: str, rows: Iterable[dict]) -> Counter:
    """Write the scene file and the question file of a split; return how many questions each form has."""
    counts, records = Counter(), []
    with (folder / split / SCENES).open("w", encoding="utf-8") as scenes:
        for row in rows:
            scenes.write(json.dumps(row) + "\n")
            counts.update(question["form"] for question in row["questions"])
            records += map(json.dumps, [record_of(row)] if split == "train" else test_rows(row))
    if split == "train":
        write_text(folder / TRAIN, "[\n" + ",\n".join(records) + "\n]\n")
    else:
        write_text(folder / TEST, "".join(f"{record}\n" for record in records))
    return counts


def record_of(row: dict) -> dict:
    """A scene's questions as one conversation in LLaVA's format; only the first turn has the instruction."""
    turns = []
    for number, question in enumerate(row["questions"]):
        text = question["text"]
        if number == 0:
            text = f"{DEFAULT_IMAGE_TOKEN}\n{text}\n{SINGLE_WORD}"
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": question["answer"]}]
    return {"id": f"prismvqa_train_{row['index']:06d}", "image": row["image"], "conversations": turns}


def test_rows(row: dict) -> Iterator[dict]:
    """A scene's questions as rows of a question file."""
    for question in row["questions"]:
        yield {
            "question_id": row["index"] * len(FAMILIES) + FAMILIES.index(question["family"]),
            "image": row["image"],
            **question,
            "chance": FORMS[question["form"]].chance,
        }


def _families(counts: dict[str, Counter]) -> dict:
    """For meta.json: the chance (mean over the questions) and number of questions of each family and form."""
    total = counts["train"] + counts["test"]
    families = {}
    for family in FAMILIES:
        forms = {name: form for name, form in FORMS.items() if form.family == family and total[name]}
        asked = sum(total[name] for name in forms)
        families[family] = {
            "chance": sum(form.chance * total[name] for name, form in forms.items()) / max(1, asked),
            **{split: sum(counts[split][name] for name in forms) for split in SPLITS},
            "forms": {
                name: {
                    "chance": form.chance,
                    **{split: counts[split][name] for split in SPLITS},
                    "answers": list(form.answers) or "either of the two that the question names",
                }
                for name, form in forms.items()
            },
        }
    return families
