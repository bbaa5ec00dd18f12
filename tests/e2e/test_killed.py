"""A run that SIGKILL ends, at any point, and that is started again, is the uninterrupted run."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ranks
import torch
from ranks import KillAt
from test_training import flags

from llava.train import saving
from llava.train.folder_lock import LOCK_FILE, FolderLock

TRAINER, SAVING = "llava.train.llava_trainer", "llava.train.saving"
# Four steps, a checkpoint after the second and after the last
KILLS = {
    "in_a_step": KillAt("torch.optim", "AdamW.step", call=2),
    "in_the_first_step_after_a_checkpoint": KillAt("torch.optim", "AdamW.step", call=3, when="after"),
    "in_the_middle_of_a_file": KillAt("torch", "save", call=2, when="half"),
    "with_a_checkpoint_written_and_unnamed": KillAt(SAVING, "publish_checkpoint"),
    "with_a_later_checkpoint_written_and_unnamed": KillAt(SAVING, "publish_checkpoint", call=2),
    "with_a_checkpoint_named": KillAt(SAVING, "publish_checkpoint", when="after"),
    "while_an_old_checkpoint_leaves": KillAt("pathlib", "Path.rename", call=3, when="after"),
    "before_the_result": KillAt(TRAINER, "LlavaTrainer.save_result"),
    "with_half_of_the_result_moved": KillAt("os", "replace", call=6),
}


def stage_flags(parts: Path, output_dir: Path, stage: int, **changes) -> list[str]:
    if stage == 1:
        return flags(parts, output_dir, "captions.json", tune_mm_mlp_adapter=True, **changes)
    return flags(parts, output_dir, "conversations.json", version="qwen_2", **changes)


def losses(output_dir: Path) -> list[tuple]:
    """(step, loss, learning rate, gradient norm) as the trainer's state and as metrics.jsonl have them."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    metrics = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "learning_rate", "grad_norm")
    from_state, from_metrics = (
        [tuple(row[name] for name in names) for row in rows if "loss" in row] for rows in (history, metrics)
    )
    assert from_metrics == from_state
    return from_state


def weights(output_dir: Path) -> bytes:
    names = ("model.safetensors", "mm_projector.bin")
    return next((output_dir / name).read_bytes() for name in names if (output_dir / name).is_file())


def assert_same_run(output_dir: Path, expected: Path) -> None:
    assert losses(output_dir) == losses(expected)
    assert weights(output_dir) == weights(expected)
    assert {path.name for path in output_dir.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(parts, tmp_path_factory):
    """Output folders by stage, of one process."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for stage in (1, 2):
        argv = stage_flags(parts, folder / str(stage), stage)
        assert ranks.run(argv, folder / "log") == [0], (folder / "log").read_text()
    return {stage: folder / str(stage) for stage in (1, 2)}


@pytest.mark.parametrize(
    ("stage", "point"),
    [(2, point) for point in KILLS]
    + [(1, "with_a_later_checkpoint_written_and_unnamed"), (1, "with_half_of_the_result_moved")],
)
def test_a_killed_run_started_again_is_the_uninterrupted_one(parts, tmp_path, uninterrupted, stage, point):
    argv, log = stage_flags(parts, tmp_path / "run", stage), tmp_path / "log"
    assert ranks.run(argv, log, prepare=KILLS[point]) == [-9], log.read_text()
    for folder in (tmp_path / "run").glob("checkpoint-*"):  # under this name, whole or not there
        assert folder in saving.checkpoints(tmp_path / "run")
    assert ranks.run(argv, log) == [0], log.read_text()
    assert_same_run(tmp_path / "run", uninterrupted[stage])


@pytest.mark.parametrize("config", [None, "zero2", "zero3"])
def test_two_ranks_killed_and_started_again_are_the_uninterrupted_ones(parts, tmp_path, config):
    log = tmp_path / "log"
    extra = {"deepspeed": f"scripts/{config}.json"} if config else {}
    whole, cut = (stage_flags(parts, tmp_path / name, 2, **extra) for name in ("whole", "cut"))
    assert ranks.run(whole, log, world_size=2) == [0, 0], log.read_text()
    kills = (
        KillAt(TRAINER, "LlavaTrainer._save_rng_state", call=2, rank=1),  # the other has written its part
        KillAt(SAVING, "publish_result"),
    )
    for kill in kills:
        assert -9 in ranks.run(cut, log, world_size=2, prepare=kill), log.read_text()
    assert ranks.run(cut, log, world_size=2) == [0, 0], log.read_text()
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    for file in (tmp_path / "cut").glob("checkpoint-4/global_step4/*model_states.pt"):
        learnt = torch.load(file, weights_only=False)["module"]
        assert "lm_head.weight" in learnt
        assert not [name for name in learnt if "vision_tower" in name and name.endswith("weight")]


# ---- Two runs, one folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_second_start_ends_on_all_ranks_with_one_line_and_changes_nothing(parts, tmp_path, world_size):
    argv, log = stage_flags(parts, tmp_path / "run", 1), tmp_path / "log"
    lock = FolderLock(tmp_path / "run")
    assert ranks.run(argv, log, world_size) == [1] * world_size, log.read_text()
    assert "Traceback" not in log.read_text()
    (line,) = (line for line in log.read_text().splitlines() if line.startswith("train_mem.py:"))
    assert f"--output_dir '{tmp_path / 'run'}' is in use by a run: process {os.getpid()} on " in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    lock.release()
    assert ranks.run(argv, log, world_size) == [0] * world_size, log.read_text()


def test_of_two_runs_started_at_once_one_trains(parts, tmp_path, uninterrupted):
    argv, logs = stage_flags(parts, tmp_path / "run", 1), [tmp_path / "log 1", tmp_path / "log 2"]
    with ThreadPoolExecutor() as pool:
        statuses = list(pool.map(lambda log: ranks.run(argv, log), logs))
    refused = [log for log, status in zip(logs, statuses, strict=True) if status != [0]]
    assert len(refused) <= 1  # none if the other was complete by then
    for log in refused:
        assert "is in use by a run" in log.read_text()
    assert_same_run(tmp_path / "run", uninterrupted[1])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_that_is_damaged_is_named_without_a_traceback(parts, tmp_path, world_size):
    argv, log = stage_flags(parts, tmp_path / "run", 1), tmp_path / "log"
    assert ranks.run(argv, log, prepare=KillAt(TRAINER, "LlavaTrainer.save_result")) == [-9]
    damaged = tmp_path / "run" / "checkpoint-4" / "mm_projector.bin"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert ranks.run(argv, log, world_size) == [1] * world_size, log.read_text()
    assert f"train_mem.py: {damaged} is cut short or damaged" in log.read_text()
    assert "Traceback" not in log.read_text()
