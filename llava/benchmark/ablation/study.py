"""Do every run of a study, spread over the available devices; runs that are done are not repeated."""

import json
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from llava.benchmark.ablation.features import HiddenStates, hidden_states
from llava.benchmark.ablation.readers import make_reader
from llava.benchmark.ablation.settings import QUESTION_ONLY, Run, Study, runs_of
from llava.benchmark.ablation.text import Tokens, Words
from llava.benchmark.ablation.training import Split, fields_of, run_once
from llava.benchmark.prismvqa.dataset import load_split, write_dataset
from llava.errors import UserError
from llava.wholefile import write_text

logger = logging.getLogger(__name__)


class Workplace:
    """What all runs of a study share on one device: the pictures' hidden states and the encoded questions."""

    def __init__(self, study: Study, output_dir: Path, device: str):
        self.study, self.device = study, device
        data = study.data
        train, test = (load_split(data.folder, split) for split in ("train", "test"))
        self.states = shared_states(study, output_dir, device).to(device)
        if study.reader.path is not None:
            self.codec: Tokens | Words = Tokens(study.reader.path)
        else:
            self.codec = Words((q.text, q.answer) for example in train for q in example.questions)
        scenes = [
            [self.codec.encode(q.text, q.answer, q.family) for q in example.questions]
            for example in [*train, *test]
        ]
        num_train = len(train) - data.num_validation
        learnt, held_out, tested = (
            Split(scenes[first:last], range(first, last))
            for first, last in ((0, num_train), (num_train, len(train)), (len(train), len(scenes)))
        )
        self.splits = learnt, (held_out if data.score_on == "validation" else tested)

    def do(self, run: Run) -> dict:
        reader = make_reader(self.study.reader, self.codec, run.seed)
        parts = (run.row.recipe(self.study.training), reader, self.splits, self.states, self.device)
        return run_once(run, *parts, lambda batches: tqdm(batches, desc=run.key, mininterval=10))


def shared_states(study: Study, output_dir: Path, device: str) -> HiddenStates:
    """The tower's states of all pictures, training pictures first; computed on `device` if not on disk."""
    pictures = [
        example.image for split in ("train", "test") for example in load_split(study.data.folder, split)
    ]
    fields = [fields_of(row) for row in study.rows if row.projector != QUESTION_ONLY]
    size = study.data.image_size
    return hidden_states(pictures, study.tower, fields, size, output_dir / "states", device)


def prepare(study: Study, output_dir: Path, device: str) -> None:
    """Make the data set and the pictures' hidden states, unless they exist already."""
    data = study.data
    numbers = {name: getattr(data, name) for name in ("num_train", "num_test", "seed", "rounds")}
    write_dataset(data.folder, size=data.image_size, **numbers)
    shared_states(study, output_dir, device)


def conduct(study: Study, output_dir: Path, devices: Sequence[str]) -> list[dict]:
    """Do all runs that are not done, one at a time on each device; return all results in the study's order.

    Each result is a file in `output_dir`/runs. A later call with the same settings reads it and does not
    repeat the run.

    Raises UserError if runs failed, after all others are done; the message names the failed runs.
    """
    prepare(study, output_dir, devices[0])
    paths = {run.key: result_path(output_dir, run) for run in runs_of(study)}
    waiting = [run for run in runs_of(study) if read_result(paths[run.key], study, run) is None]
    logger.info("%d of %d runs are done", len(paths) - len(waiting), len(paths))
    failed = {}
    if waiting and len(devices) == 1:
        workplace = Workplace(study, output_dir, devices[0])
        for run in waiting:
            failed |= _attempt(workplace, run, paths[run.key])
    elif waiting:
        failed = _share_out(study, output_dir, devices, waiting)
    if failed:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(paths)} runs failed: {reasons}")
    return results_so_far(study, output_dir)


def results_so_far(study: Study, output_dir: Path) -> list[dict]:
    """The results of the runs that are done, in the study's order."""
    found = (read_result(result_path(output_dir, run), study, run) for run in runs_of(study))
    return [result for result in found if result is not None]


def result_path(output_dir: Path, run: Run) -> Path:
    return output_dir / "runs" / f"{run.key}.json"


def settings_of(study: Study, run: Run) -> dict:
    """All settings that a result depends on, as JSON values."""
    parts = {"data": asdict(study.data), "reader": asdict(study.reader), "training": asdict(study.training)}
    row = {key: value for key, value in asdict(run.row).items() if key not in ("marks", "seeds")}
    content = {**parts, "tower": study.tower, "row": row, "factors": run.scale_factors, "seed": run.seed}
    return json.loads(json.dumps(content, default=str))


def read_result(path: Path, study: Study, run: Run) -> dict | None:
    """A run's result, or None if there is none that was made with these settings."""
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    return content["result"] if content["settings"] == settings_of(study, run) else None


def _attempt(workplace: Workplace, run: Run, path: Path) -> dict[str, str]:
    """Do one run and write its result; return {key: reason} if it failed, else {}."""
    try:
        result = workplace.do(run)
    except (ValueError, RuntimeError) as error:  # out of memory, wrong shapes: other runs can still be done
        logger.exception("%s failed", run.key)
        return {run.key: str(error).splitlines()[0]}
    content = {"settings": settings_of(workplace.study, run), "result": result}
    write_text(path, json.dumps(content, indent=1))
    return {}


_workplace: Workplace  # set once in each worker process


def _open_workplace(study: Study, output_dir: Path, free) -> None:
    global _workplace
    device, num_threads = free.get()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(num_threads)
    _workplace = Workplace(study, output_dir, device)


def _attempt_here(run: Run, path: Path) -> dict[str, str]:
    return _attempt(_workplace, run, path)


def _share_out(study: Study, output_dir: Path, devices: Sequence[str], waiting: list[Run]) -> dict[str, str]:
    """Give each device a process that takes the next run when it is free; CPU processes share the threads."""
    devices = devices[: len(waiting)]
    num_threads = max(1, torch.get_num_threads() // devices.count("cpu")) if "cpu" in devices else 1
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for device in devices:
        free.put((device, num_threads))
    failed: dict[str, str] = {}
    with ProcessPoolExecutor(len(devices), context, _open_workplace, (study, output_dir, free)) as pool:
        jobs = [pool.submit(_attempt_here, run, result_path(output_dir, run)) for run in waiting]
        for job in as_completed(jobs):
            failed |= job.result()
    return failed
