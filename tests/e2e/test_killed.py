"""A run that SIGKILL ends at any point, started again, gives the result of an uninterrupted run."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import ranks
import torch
from messages import assert_names
from ranks import KillAt
from stages import assert_same_run, stage_flags

from llava.train import saving
from llava.train.folder_lock import LOCK_FILE, FolderLock

TRAINER, SAVING = "llava.train.llava_trainer", "llava.train.saving"
# Four steps, with a checkpoint after the second and after the last
KILLS = {
    "in_a_step": KillAt("torch.optim", "AdamW.step", call=2),
    "in_the_first_step_after_a_checkpoint": KillAt("torch.optim", "AdamW.step", call=3, when="after"),
    "in_the_middle_of_a_file": KillAt("torch", "save", call=2, when="half"),
    "with_a_checkpoint_written_and_unnamed": KillAt(SAVING, "publish_checkpoint", call=2),
    "with_a_checkpoint_named": KillAt(SAVING, "publish_checkpoint", when="after"),
    "while_an_old_checkpoint_leaves": KillAt("pathlib", "Path.rename", call=3, when="after"),
    "before_the_result": KillAt(TRAINER, "LlavaTrainer.save_result"),
    "with_half_of_the_result_moved": KillAt("os", "replace", call=6),
}


@pytest.mark.parametrize(
    ("stage", "point"),
    [*((2, point) for point in KILLS), (1, "with_half_of_the_result_moved")],
)
def test_a_killed_run_started_again_is_the_uninterrupted_one(parts, tmp_path, uninterrupted, stage, point):
    argv, log = stage_flags(parts, tmp_path / "run", stage), tmp_path / "log"
    assert ranks.run(argv, log, prepare=KILLS[point]) == [-9], log.read_text()
    for folder in (tmp_path / "run").glob("checkpoint-*"):  # a folder with this name is complete
        assert folder in saving.checkpoints(tmp_path / "run")
    assert ranks.run(argv, log) == [0], log.read_text()
    assert_same_run(tmp_path / "run", uninterrupted(stage))


@pytest.mark.parametrize("config", [None, "zero3"])  # test_lora.py resumes with ZeRO-2
def test_two_ranks_killed_and_started_again_are_the_uninterrupted_ones(
    parts, uninterrupted, tmp_path, config
):
    log = tmp_path / "log"
    extra = {"deepspeed": f"scripts/{config}.json"} if config else {}
    cut = stage_flags(parts, tmp_path / "cut", 2, **extra)
    kills = [
        KillAt(TRAINER, "LlavaTrainer._save_rng_state", call=2, rank=1)
    ]  # the other rank has written its part
    if config is None:
        kills.append(KillAt(SAVING, "publish_result"))
    for kill in kills:
        assert -9 in ranks.run(cut, log, world_size=2, prepare=kill), log.read_text()
    assert ranks.run(cut, log, world_size=2) == [0, 0], log.read_text()
    assert_same_run(tmp_path / "cut", uninterrupted(2, 2, **extra))
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
    assert_names(line, f"--output_dir '{tmp_path / 'run'}'", "in use", f"process {os.getpid()} on ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    lock.release()
    assert ranks.run(argv, log, world_size) == [0] * world_size, log.read_text()


def test_one_of_two_runs_started_at_once_trains(parts, tmp_path, uninterrupted):
    argv, logs = stage_flags(parts, tmp_path / "run", 1), [tmp_path / "log 1", tmp_path / "log 2"]
    with ThreadPoolExecutor() as pool:
        statuses = list(pool.map(lambda log: ranks.run(argv, log), logs))
    refused = [log for log, status in zip(logs, statuses, strict=True) if status != [0]]
    assert len(refused) <= 1  # none, if the other run was already complete
    for log in refused:
        assert "in use" in log.read_text()
    assert_same_run(tmp_path / "run", uninterrupted(1))


def test_a_checkpoint_that_is_damaged_is_named_without_a_traceback(parts, tmp_path):
    argv, log = stage_flags(parts, tmp_path / "run", 1), tmp_path / "log"
    assert ranks.run(argv, log, prepare=KillAt(TRAINER, "LlavaTrainer.save_result")) == [-9]
    damaged = tmp_path / "run" / "checkpoint-4" / "mm_projector.bin"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert ranks.run(argv, log, world_size=2) == [1, 1], log.read_text()
    assert re.search(rf"train_mem\.py: {damaged} .*damaged", log.read_text())
    assert "Traceback" not in log.read_text()
