"""Runs that end early by SIGTERM, steps that are not finite, or a full disk: the message and the files."""

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ranks
import torch
from messages import assert_names
from safetensors.torch import load_file
from stages import ENTRY, assert_same_run, stage_flags

from llava.data.collator import Collator
from llava.train import saving
from llava.train.llava_trainer import LlavaTrainer

BAD_NAME, GOOD_NAME = "the record that is not finite", "a good record"


# ---- SIGTERM


def terminate_after_first_row(command: list[str], output_dir: Path) -> tuple[int, str]:
    """Start a command in its own process group, and send the group SIGTERM as soon as a step is logged."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    metrics = output_dir / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # data workers get it too, like from a scheduler
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output


WORKERS = {"save_steps": 1000, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}


class SigtermInStep:
    """Sends SIGTERM to one rank and its data workers during a step."""

    def __init__(self, step: int, rank: int):
        self.step, self.rank = step, rank

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        original, calls = torch.optim.AdamW.step, []

        @functools.wraps(original)
        def terminated(*args, **kwargs):
            calls.append(1)
            if len(calls) == self.step:
                for process in (*psutil.Process().children(recursive=True), psutil.Process()):
                    process.terminate()
            return original(*args, **kwargs)

        torch.optim.AdamW.step = terminated


def assert_stopped(output_dir: Path, max_steps: int, output: str) -> None:
    """Check that the run left one checkpoint and no result, and that its message names the checkpoint."""
    (checkpoint,) = saving.checkpoints(output_dir)
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert 1 <= step < max_steps
    message = f"train_mem.py: SIGTERM: stopped after step {step}. The run is not complete. The last complete "
    assert output.count(message + f"checkpoint is {checkpoint}") == 1, output
    assert not (output_dir / "mm_projector.bin").exists()


def test_sigterm_to_all_processes_of_a_run_saves_and_exits_with_143(parts, tmp_path):
    max_steps = 10_000  # more steps than any machine makes before the signal comes
    flags = stage_flags(parts, tmp_path / "cut", 1, max_steps=max_steps, **WORKERS)
    status, output = terminate_after_first_row([sys.executable, str(ENTRY), *flags], tmp_path / "cut")
    assert status == 143, output
    assert_stopped(tmp_path / "cut", max_steps, output)


def test_sigterm_to_one_of_two_ranks_saves_and_the_next_start_goes_on_exactly(parts, tmp_path):
    whole, cut = (stage_flags(parts, tmp_path / name, 1, max_steps=8, **WORKERS) for name in ("whole", "cut"))
    log = tmp_path / "log"
    assert set(ranks.run(whole, log, 2)) == {0}, log.read_text()
    assert ranks.run(cut, log, 2, prepare=SigtermInStep(2, rank=1)) == [143, 143], log.read_text()
    assert_stopped(tmp_path / "cut", 8, log.read_text())
    assert set(ranks.run(cut, log, 2)) == {0}, log.read_text()
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# ---- Not finite


class SpoilBatches:
    """Puts infinite pixels into some batches of one rank, counted from 1; the records' names show which."""

    def __init__(self, numbers: set[int], rank: int = 0):
        self.numbers, self.rank = numbers, rank

    def __call__(self, rank: int) -> None:
        collate, batches = Collator.__call__, []

        def spoilt(collator, samples):
            batch = collate(collator, samples)
            batches.append(1)
            is_bad = len(batches) in self.numbers and rank == self.rank
            if is_bad:
                batch["images"] = torch.full_like(batch["images"], torch.inf)
            batch["record_names"] = [BAD_NAME if is_bad else GOOD_NAME] * len(samples)
            return batch

        Collator.__call__ = spoilt


@pytest.mark.parametrize("config", [None, "zero2", "zero3"])
def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(parts, tmp_path, config):
    log, output_dir = tmp_path / "log", tmp_path / "run"
    extra = {"deepspeed": f"scripts/{config}.json"} if config else {}
    argv = stage_flags(parts, output_dir, 2, max_steps=3, save_steps=1, save_total_limit=9, **extra)
    assert ranks.run(argv, log, world_size=2, prepare=SpoilBatches({2}, rank=1)) == [0, 0], log.read_text()
    for name, value in load_file(output_dir / "model.safetensors").items():
        assert value.isfinite().all(), name
    assert [folder.name for folder in saving.checkpoints(output_dir)] == ["checkpoint-1", "checkpoint-3"]
    (line,) = (line for line in log.read_text().splitlines() if "step 2 left out" in line)
    assert_names(line, "not finite (1 in a row)", BAD_NAME)
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped_steps") for row in rows] == [None, 1, None]
    assert [row["loss"] is None for row in rows] == [False, True, False]


def test_a_skipped_step_changes_no_weight_and_no_statistic(parts, tmp_path):
    changes = {"max_steps": 2, "save_steps": 1, "save_total_limit": 9, "gradient_accumulation_steps": 2}
    argv, log = stage_flags(parts, tmp_path / "run", 2, **changes), tmp_path / "log"
    assert ranks.run(argv, log, prepare=SpoilBatches({3})) == [0]
    assert re.search(rf"step 2 .*not finite \(1 in a row\): {re.escape(BAD_NAME)}", log.read_text())
    assert GOOD_NAME not in log.read_text()  # the step's other batch
    before = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    counts = {name for name in before if name.endswith("num_batches_tracked")}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - counts)


def test_the_logged_loss_is_the_mean_of_the_steps_that_count(parts, tmp_path):
    common = {"max_steps": 3, "save_steps": 9, "learning_rate": 0.0}
    each = stage_flags(parts, tmp_path / "each", 2, **common)
    assert ranks.run(each, tmp_path / "log", prepare=SpoilBatches({2})) == [0]
    together = stage_flags(parts, tmp_path / "together", 2, **{**common, "logging_steps": 3})
    assert ranks.run(together, tmp_path / "log", prepare=SpoilBatches({2})) == [0]
    first, _, last = (json.loads(line)["loss"] for line in (tmp_path / "each/metrics.jsonl").open())
    (row,) = (json.loads(line) for line in (tmp_path / "together/metrics.jsonl").open())
    assert row["loss"] == pytest.approx((first + last) / 2)


def test_max_nan_steps_in_a_row_end_the_run_with_the_last_good_checkpoint(parts, tmp_path):
    log, output_dir = tmp_path / "log", tmp_path / "run"
    argv = stage_flags(parts, output_dir, 2, max_steps=9, save_steps=1, max_nan_steps=2, save_total_limit=9)
    spoil = SpoilBatches({2, 4, 5, 6}, rank=1)
    assert set(ranks.run(argv, log, world_size=2, prepare=spoil)) == {1}, log.read_text()
    last = output_dir / "checkpoint-3"
    assert saving.checkpoints(output_dir)[-1] == last
    message = next(line for line in log.read_text().splitlines() if line.startswith("train_mem.py:"))
    assert_names(message, "2 steps in a row", "finite", BAD_NAME, f"last complete checkpoint is {last}")
    assert "Traceback" not in log.read_text()
    assert not (output_dir / "model.safetensors").exists()


# ---- A full disk


class LimitFilesIn:
    """From the `call`-th call of a trainer's method, the system refuses files of more than 64 KiB."""

    def __init__(self, method: str, call: int = 1):
        self.method, self.call = method, call

    def __call__(self, rank: int) -> None:
        original, calls = getattr(LlavaTrainer, self.method), []

        def limited(*args, **kwargs):
            calls.append(1)
            if len(calls) == self.call:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
            return original(*args, **kwargs)

        setattr(LlavaTrainer, self.method, limited)


@pytest.mark.parametrize(
    ("limit", "what", "left", "world_size"),
    [
        (LimitFilesIn("_save_checkpoint", call=2), "checkpoint-4", "checkpoint-2", 2),
        (LimitFilesIn("_save_optimizer_and_scheduler"), "checkpoint-2", None, 1),
        (LimitFilesIn("save_result"), "the result", "checkpoint-4", 2),
    ],
    ids=["checkpoint-2-ranks", "first-checkpoint", "result-2-ranks"],
)
def test_a_save_that_does_not_fit_ends_in_one_message_and_the_same_command_goes_on(
    parts, uninterrupted, tmp_path, limit, what, left, world_size
):
    log, output_dir = tmp_path / "log", tmp_path / "run"
    cut = stage_flags(parts, output_dir, 2)
    assert set(ranks.run(cut, log, world_size, prepare=limit)) == {1}, log.read_text()
    output = log.read_text()
    assert "Traceback" not in output
    (message,) = (line for line in output.splitlines() if line.startswith("train_mem.py:"))
    assert_names(message, what, f"not be written to {output_dir}: ")
    assert "too large" in message or "only in part" in message
    # torch.save does not report the reason, and a limit on the size of files is not a lack of space
    assert ("GiB are free" in message) == ("only in part" in message)
    assert (f"complete checkpoint is {output_dir / left}" if left else "no complete checkpoint") in message
    assert not (output_dir / saving.STAGING).exists()
    assert [folder.name for folder in output_dir.glob("checkpoint-*")] == ([left] if left else [])
    assert set(ranks.run(cut, log, world_size)) == {0}, log.read_text()
    assert_same_run(output_dir, uninterrupted(2, world_size))


def test_an_output_folder_that_cannot_be_written_is_said_ahead_of_the_first_step(parts, tmp_path):
    (tmp_path / "file").write_text("no folder")
    log = tmp_path / "log"
    assert ranks.run(stage_flags(parts, tmp_path / "file" / "run", 1), log) == [1]
    assert f"train_mem.py: --output_dir '{tmp_path / 'file' / 'run'}' cannot be written" in log.read_text()
    assert "Traceback" not in log.read_text()
