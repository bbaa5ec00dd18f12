"""The cost of evaluation without the model, at the size of whole benchmarks: loading, resuming, scoring.

Question and answer files are generated with --questions questions and with twice as many. A cost that more
than doubles grows faster than the number of questions. The model is not run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

from llava.benchmark.timing import peak_process_mib, processor_name, table
from llava.eval.records import AnswerFile, check_questions, key_of, write_jsonl
from llava.eval.tasks import TASKS, gqa, pope, shared, textvqa, vizwiz, vqav2

TEMPLATE = "vicuna_v1"
MAX_NEW_TOKENS = 128
SETTINGS = {"conv_mode": TEMPLATE, "temperature": 0.0, "weights": "0" * 12, "max_new_tokens": MAX_NEW_TOKENS}
ANSWERS = ["yes", "no", "2", "red", "man", "blue", "frisbee", "tennis", "left", "1", "black", "dog"]
WORDS = ["is", "there", "a", "man", "dog", "what", "color", "how", "many", "people", "on", "the", "table"]
QUESTIONS_AN_IMAGE = 3
TEST_SPLIT = 4  # questions in VQAv2's file of all test questions for each one of test-dev
TOKEN_BUDGET = 16384
POSITIONS = 144  # that an image takes in a prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--questions",
        type=int,
        default=53_500,
        help="questions of each benchmark; twice as many are measured too",
    )
    add("--left", type=int, default=1000, help="questions that have no answer when a run is resumed")
    parser.set_defaults(run=run)


# ---- Rendered files


def question(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(4, 11))) + "?"


def questions(num: int, name: str = "{}.jpg", **more) -> list[dict]:
    """Return rows in the format of LLaVA-1.5's question files."""
    draw = random.Random(0)
    return [
        {
            "question_id": 262144000 + i,
            "image": name.format(i // QUESTIONS_AN_IMAGE),
            "text": f"{question(draw)}\n{shared.SINGLE_WORD}",
            "category": "default",
            **more,
        }
        for i in range(num)
    ]


def ten_answers(draw: random.Random) -> list[str]:
    return draw.choices(ANSWERS, k=10)


def render(folder: Path, num: int) -> None:
    """Write the files of all benchmarks, each in its own folder, with `num` questions."""
    draw, rows = random.Random(1), questions(num)
    write_jsonl(folder / "vqav2" / vqav2.TEST_DEV, rows)
    write_jsonl(folder / "vqav2" / vqav2.TEST, questions(TEST_SPLIT * num))
    asked = [{"question_id": i, "image_id": i, "question": question(draw)} for i in range(num)]
    given = [
        {
            "question_id": i,
            "answers": [{"answer": text, "answer_confidence": "yes"} for text in ten_answers(draw)],
            "answer_type": "other",
        }
        for i in range(num)
    ]
    write_json(folder / "vqav2" / vqav2.VAL_QUESTIONS, {"questions": asked})
    write_json(folder / "vqav2" / vqav2.VAL_ANSWERS, {"annotations": given})
    images = [f"{i}.jpg" for i in range(num)]
    write_json(
        folder / "vizwiz" / vizwiz.VAL_ANNOTATIONS,
        [row | {"image": image, "question": "what?"} for row, image in zip(given, images, strict=True)],
    )
    write_jsonl(folder / "gqa" / gqa.QUESTIONS, [row | {"question_id": str(i)} for i, row in enumerate(rows)])
    types = {"detailed": "x", "semantic": "attr", "structural": "query"}
    write_json(
        folder / "gqa" / gqa.ANNOTATIONS,
        {str(i): {"question": "?", "answer": draw.choice(ANSWERS), "types": types} for i in range(num)},
    )
    labelled = [row | {"category": pope.CATEGORIES[i % 3], "text": f"{i}?"} for i, row in enumerate(rows)]
    write_jsonl(folder / "pope" / pope.QUESTIONS, labelled)
    for category in pope.CATEGORIES:
        labels = [
            row | {"label": draw.choice(("yes", "no"))} for row in labelled if row["category"] == category
        ]
        write_jsonl(folder / "pope" / pope.LABEL_FOLDER / pope.LABELS.format(category), labels)
    texts = [f"{i} {question(draw)}" for i in range(num)]
    write_jsonl(
        folder / "textvqa" / textvqa.QUESTIONS,
        [
            row | {"question_id": row["image"], "text": f"{text}\nReference OCR token: {text}"}
            for row, text in zip(rows, texts, strict=True)
        ],
    )
    data = [
        {"question_id": i, "image_id": row["image"], "question": text, "answers": ten_answers(draw)}
        for i, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    write_json(folder / "textvqa" / textvqa.ANNOTATIONS, {"data": data})


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def answer(folder: Path, left: int) -> None:
    """Answer all VQAv2 questions except the last `left`, as in the file that a killed run leaves."""
    rows = load("vqav2", folder)
    file = open_answers(folder, rows)
    for row, text in zip(rows[: max(0, len(rows) - left)], said(len(rows)), strict=False):
        file.append(row, text)


# ---- Steps: each prepares its inputs before its `yield`; only what follows is measured


def load(name: str, folder: Path) -> list[dict]:
    """Load and check a benchmark's questions as evaluation does."""
    return check_questions(TASKS[name].load(folder / TASKS[name].folder), name)


def open_answers(folder: Path, rows: list[dict]) -> AnswerFile:
    return AnswerFile(folder / "answers.jsonl", rows, "model", SETTINGS)


def said(num: int) -> list[str]:
    return random.Random(2).choices(ANSWERS, k=num)


def loading(name: str) -> Callable[[Path], Iterator[None]]:
    def step(folder: Path) -> Iterator[None]:
        yield
        load(name, folder)

    return step


def settling(use: Callable[[list[dict], dict, Path], object], name: str) -> Callable[[Path], Iterator[None]]:
    """Return a step that calls `use` with all questions of a benchmark, their answers and a folder."""

    def step(folder: Path) -> Iterator[None]:
        rows = load(name, folder)
        answers = dict(zip((row["question_id"] for row in rows), said(len(rows)), strict=True))
        yield
        use(rows, answers, folder)

    return step


def scoring(name: str) -> Callable[[Path], Iterator[None]]:
    return settling(lambda rows, answers, folder: TASKS[name].score(rows, answers), name)  # type: ignore[misc]


def exporting(name: str) -> Callable[[Path], Iterator[None]]:
    return settling(TASKS[name].export, name)  # type: ignore[arg-type]


def reading_answers(folder: Path) -> Iterator[None]:
    rows = load("vqav2", folder)
    yield
    open_answers(folder, rows)


def planning(folder: Path) -> Iterator[None]:
    """Plan a new run. It writes the file of lengths that `resuming` reads."""
    rows, plan = load("vqav2", folder), planner(folder)
    yield
    plan(rows, set())


def resuming(folder: Path) -> Iterator[None]:
    """Do all that a resumed run does before its first batch, except loading the model."""
    plan = planner(folder)
    yield
    rows = load("vqav2", folder)
    plan(rows, set(open_answers(folder, rows).answered))


def finishing(folder: Path) -> Iterator[None]:
    answers = open_answers(folder, load("vqav2", folder))
    yield
    answers.finish()


def planner(folder: Path) -> Callable[[list[dict], set], None]:
    """Return a function that makes all batches, and the prompts of those with an unanswered question."""
    from llava.conversation import template_named
    from llava.eval.generation import PromptMaker, split_batches
    from llava.eval.lengths import LengthFile, measure

    model = SimpleNamespace(
        config=SimpleNamespace(image_aspect_ratio="pad"), get_vision_tower=object, num_visual_tokens=POSITIONS
    )
    make_prompts = PromptMaker(model, new_tokenizer(), template_named(TEMPLATE), folder)
    alone = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)

    def plan(rows: list[dict], kept: set) -> None:
        file = LengthFile(folder / "answers.jsonl", rows, SETTINGS)
        lengths = measure(rows, file, kept, make_prompts, refuse, alone)
        for batch in split_batches(lengths, None, TOKEN_BUDGET, MAX_NEW_TOKENS):
            asked = [rows[one.place] for one in batch]
            if any(key_of(row) not in kept for row in asked):
                make_prompts(asked)

    return plan


def refuse(row: dict, reason: Exception) -> None:
    raise reason


def new_tokenizer():
    """Return a tokenizer: byte-level BPE, trained on some generated questions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([row["text"] for row in questions(1000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


SCORED = ("vqav2_val", "gqa", "pope", "textvqa", "vizwiz_val")
# In this order, because the resumed run reads the lengths that the new run writes
STEPS: dict[str, Callable[[Path], Iterator[None]]] = {
    **{f"load {name}": loading(name) for name in ("vqav2", *SCORED)},
    "plan vqav2, new": planning,
    "read the answers of vqav2": reading_answers,
    "resume vqav2: load, read answers, plan": resuming,
    "write the answers file of vqav2": finishing,
    **{f"write the submission of {name}": exporting(name) for name in ("vqav2", "gqa")},
    **{f"score {name}": scoring(name) for name in SCORED},
}


def measured(name: str, folder: Path) -> tuple[float, float]:
    """Return a step's processor seconds, and its peak memory in MiB beyond what is held when it starts."""
    step = STEPS[name](folder)
    next(step)
    start = time.process_time()
    memory = peak_process_mib(lambda: list(step))
    return time.process_time() - start, memory


def run(args: argparse.Namespace) -> None:
    """Print a table with a row for each step."""
    sizes = args.questions, 2 * args.questions
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in STEPS}
    with tempfile.TemporaryDirectory() as scratch:
        for num in sizes:
            folder = Path(scratch, str(num))
            render(folder, num)
            answer(folder, args.left)
            for name, found in figures.items():
                # A new process for each step, because a process keeps memory that it has freed
                spawn = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    found.append(pool.submit(measured, name, folder).result())
    columns = ["step", *(f"{num:,}: {unit}" for num in sizes for unit in ("s", "MiB")), "s, second by first"]
    rows = [
        [
            name,
            *(cell for s, mib in found for cell in (f"{s:.2f}", f"{mib:.0f}")),
            f"{found[1][0] / found[0][0]:.1f}x",
        ]
        for name, found in figures.items()
    ]
    print(
        f"`{' '.join(['python -m llava.benchmark', *sys.argv[1:]])}`, "
        f"{datetime.now(timezone.utc).date().isoformat()}: {os.cpu_count()} cores of {processor_name()}; "
        "processor seconds, and main memory beyond the libraries'; the resumed run has "
        f"{args.left} questions left.\n"
    )
    print(table(columns, rows))
