"""The cost of training data: opening files of --records records, memory, and each stage of a sample.

The records are generated and all have the same picture. Each number of records is opened twice, each time in
a new process. The time of a stage is the median over samples that --workers processes make at the same time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from llava.benchmark.timing import headline, provenance, table, write

NUM_TURNS, NUM_WORDS = 10, 14  # of a record of 0.9 KB, as in LLaVA's instruction data
WORDS = (
    *("the", "a", "man", "sits", "on", "bench", "near", "tree", "with", "red", "bus", "and", "two", "dogs"),
    *("what", "is", "shown", "in", "this", "picture", "how", "many", "people", "are", "there", "left"),
)
OWN = ("find", "parse", "template and labels", "tensors")  # stages that use no tokeniser and no picture
SIDE = 336


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="processes that make samples")
    parser.add_argument("--samples", type=int, default=200, help="random samples of each process")
    parser.add_argument(
        "--tokenizer", help="folder or hub name of a tokenizer; default: a new one with a token per byte"
    )
    parser.add_argument(
        "--work_dir", type=Path, help="folder for records and indices; default: a temporary folder"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("playground/benchmark"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, write data.md and data.json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.work_dir or Path(scratch)
        rows = [measure(folder / str(count), count, args) for count in args.records]
    about = {**provenance("cpu", "float32"), "rows": rows}
    text = as_markdown(about)
    write(args.output_dir, "data", about, text)
    print(text)


def render(folder: Path, num_records: int) -> None:
    """Write data.json with `num_records` records, and their picture of 640 x 480 pixels in images/."""
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(folder / "images" / "picture.jpg")
    draw = random.Random(0)
    with open(folder / "data.json", "w") as file:
        for number in range(num_records):
            said = [" ".join(draw.choices(WORDS, k=NUM_WORDS)) for _ in range(NUM_TURNS)]
            said[0] = f"<image>\n{said[0]}"
            turns = [{"from": ("human", "gpt")[i % 2], "value": words} for i, words in enumerate(said)]
            record = {"id": f"{number:09}", "image": "picture.jpg", "conversations": turns}
            file.write(f"{',' if number else '['}\n{json.dumps(record)}")
        file.write("\n]\n")


def measure(folder: Path, num_records: int, args: argparse.Namespace) -> dict:
    """Return the figures of one number of records, each opening measured in a new process."""
    render(folder, num_records)
    for kept in (folder / "index").glob("*"):
        kept.unlink()
    first, again = (_in_new_process(folder, args) for _ in range(2))
    return {"records": num_records, "first": first, "again": again}


def _in_new_process(folder: Path, args: argparse.Namespace) -> dict:
    """Return what `opened` prints in a process that has opened nothing before."""
    code = "import sys; from llava.benchmark.data import opened; opened(*sys.argv[1:])"
    options = [str(folder), args.tokenizer or "", str(args.samples), *map(str, args.workers)]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def opened(folder: str, tokenizer: str, samples: str, *workers: str) -> None:
    """Open a folder's records and print, as JSON, seconds, MB and the median seconds of each stage."""
    import torch

    torch.set_num_threads(1)  # as in a worker
    dataset, figures = open_dataset(Path(folder), tokenizer)
    stages = stages_of(dataset)
    figures["stages"] = {count: medians(stages, len(dataset), int(samples), int(count)) for count in workers}
    print(json.dumps(figures))


def open_dataset(folder: Path, tokenizer: str) -> tuple:
    """Open a folder's data set; return it, the seconds of each step and the memory in MB."""
    from types import SimpleNamespace

    from transformers import AutoTokenizer, CLIPImageProcessor

    from llava.data.dataset import SupervisedDataset
    from llava.data.sample import SampleBuilder
    from llava.data.sampler import ModalityLengthGroupedSampler

    square = {"height": SIDE, "width": SIDE}
    builder = SampleBuilder(
        AutoTokenizer.from_pretrained(tokenizer) if tokenizer else byte_tokenizer(),
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        "v1",
        SimpleNamespace(image_aspect_ratio="pad"),
        lambda size: 576,
    )
    before, start = memory_mb(), time.perf_counter()
    dataset = SupervisedDataset(
        [folder / "data.json"], builder, folder / "images", index_folder=folder / "index"
    )
    is_open = time.perf_counter()
    lengths = dataset.modality_lengths
    has_lengths = time.perf_counter()
    next(iter(ModalityLengthGroupedSampler(dataset.mixture, lengths, 16, 8)))
    return dataset, {
        "open": is_open - start,
        "estimates": has_lengths - is_open,
        "order": time.perf_counter() - has_lengths,
        "memory": memory_mb() - before,
        "most": memory_mb("VmHWM") - before,
    }


def byte_tokenizer():
    """Return a tokenizer that needs no files: byte-level BPE, trained on WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def memory_mb(name: str = "VmRSS") -> float:
    """Return the MB of this process that are in memory, including pages of mapped files (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1000
    raise AssertionError(name)


class KnownTexts:
    """Wraps a tokenizer and caches its results, so that tokenising a text again costs nothing."""

    is_fast = True

    def __init__(self, tokenizer):
        self.bos_token_id = tokenizer.bos_token_id
        self._ask = cache(tokenizer)

    def __call__(self, text: str, **options):
        return self._ask(text, **options)


def stages_of(dataset) -> Callable[[int], dict[str, float]]:
    """Return a function that makes a sample and returns the seconds of each stage and of the whole."""
    from PIL import Image

    from llava.data.index import FIRST, SECOND
    from llava.data.record import image_files
    from llava.data.targets import conversation_from_record
    from llava.mm_utils import encode_prompt, load_image, process_images

    builder, (index,) = dataset.builder, dataset.indices

    def decoded(path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    def sample(number: int) -> dict[str, float]:
        seconds: dict[str, float] = {}

        def timed(stage: str, call: Callable):
            start = time.perf_counter()
            result = call()
            seconds[stage] = time.perf_counter() - start
            return result

        timed("whole sample", lambda: dataset[number])  # also warms up the stages below
        place = timed("find", lambda: tuple(index.rows[number, FIRST : SECOND + 1].tolist()))
        record = timed("parse", lambda: index.reader.read(place))
        source_of = index.reader.source_of(place)
        path = source_of(image_files(record)[0])
        known = replace(builder, tokenizer=KnownTexts(builder.tokenizer))
        known.encode(record, "", source_of)
        encoded = timed("template and labels", lambda: known.encode(record, "", source_of))
        timed("tensors", lambda: builder.load(replace(encoded, files=[]), source_of))
        prompt = conversation_from_record(record, builder.template).get_prompt()
        timed("tokenise", lambda: encode_prompt(prompt, builder.tokenizer))
        picture = timed("decode", lambda: load_image(path))
        timed("preprocess", lambda: process_images([picture], builder.image_processor, builder.image_config))
        timed("PIL only: decode", lambda: decoded(path))
        timed("PIL only: resize", lambda: picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        return seconds

    return sample


def medians(sample: Callable, num_records: int, num_samples: int, num_workers: int) -> dict[str, float]:
    """Return each stage's median seconds over samples that `num_workers` processes make at the same time."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work(seed: int) -> None:
        draw = random.Random(seed)
        results.put([sample(draw.randrange(num_records)) for _ in range(num_samples)])

    processes = [context.Process(target=work, args=(seed,)) for seed in range(num_workers)]
    for process in processes:
        process.start()
    made = [seconds for _ in processes for seconds in results.get()]
    for process in processes:
        process.join()
    return {stage: statistics.median(seconds[stage] for seconds in made) for stage in made[0]}


def as_markdown(about: dict) -> str:
    """Return two tables: one on opening the records, one on a sample's stages."""
    rows = about["rows"]
    opening = table(
        [
            "records",
            "first opening, s",
            "opening again, s",
            "estimates, s",
            "order, s",
            "memory, MB",
            "peak memory, first opening, MB",
        ],
        [
            [
                f"{row['records']:,}",
                *(f"{figure:.2f}" for figure in _opening(row)),
                *(f"{figure:.0f}" for figure in _memory(row)),
            ]
            for row in rows
        ],
    )
    cases = [(row, workers) for row in rows for workers in row["again"]["stages"]]
    columns = [
        f"{row['records']:,} records, {workers} worker{'s' * (workers != '1')}" for row, workers in cases
    ]
    seconds = [row["again"]["stages"][workers] for row, workers in cases]
    per_second = [
        [
            stage,
            *(
                f"{int(workers) / of_case[stage]:,.0f}"
                for (_, workers), of_case in zip(cases, seconds, strict=True)
            ),
        ]
        for stage in seconds[0]
    ]
    own = [f"{1e3 * sum(of_case[stage] for stage in OWN):.2f}" for of_case in seconds]
    stages = table(["records per second", *columns], [*per_second, ["our overhead, ms per sample", *own]])
    return f"{headline(about)}.\n\n{opening}\n{stages}"


def _opening(row: dict) -> tuple[float, ...]:
    again = row["again"]
    return row["first"]["open"], again["open"], again["estimates"], again["order"]


def _memory(row: dict) -> tuple[float, float]:
    return row["again"]["memory"], row["first"]["most"]
