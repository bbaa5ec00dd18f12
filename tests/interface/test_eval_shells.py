"""scripts/v1_5/eval: the command that each script starts, its processes, and the effect of variables."""

import os
import subprocess
from pathlib import Path

import pytest

from llava.eval.tasks import TASKS

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "scripts" / "v1_5" / "eval"
SHELLS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "evaluate.sh")


def started(tmp_path: Path, name: str, *flags: str, gpus: int = 0, **variables: str) -> list[str]:
    """The command line that a script starts on a machine with this number of GPUs."""
    for command, lines in (("python", 'printf "%s\\n" "$@"'), ("nvidia-smi", 'echo -n "$LISTED"')):
        (tmp_path / command).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / command).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    listed = "GPU 0: some\n" * gpus
    environment = {"PATH": path, "VIRTUAL_ENV": str(tmp_path), "LISTED": listed, **variables}
    done = subprocess.run(
        ["bash", FOLDER / f"{name}.sh", *flags], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.stem)
def test_a_script_asks_a_task_that_exists(path, tmp_path):
    command = started(tmp_path, path.stem)
    assert command[:3] == ["-m", "llava.eval.run", "--tasks"]
    assert command[3] in TASKS


def test_variables_become_flags_and_flags_follow(tmp_path):
    command = started(
        *(tmp_path, "gqa", "--limit", "3"),
        MODEL_PATH="my models/a",
        SCALE_FACTOR="3",
        DATA_ROOT="data",
        OUTPUT_DIR="out",
    )
    assert command == [
        *("-m", "llava.eval.run", "--tasks", "gqa", "--model-path", "my models/a", "--data-root", "data"),
        *("--output-dir", "out", "--scale_factor", "3", "--limit", "3"),
    ]
    assert "playground/checkpoints/llava-v1.5-7b" in started(tmp_path, "gqa", CKPT="llava-v1.5-7b")


@pytest.mark.parametrize(
    ("gpus", "variables", "processes"),
    [
        (1, {}, 1),
        (8, {}, 8),
        (8, {"CUDA_VISIBLE_DEVICES": "2,5"}, 2),
        (8, {"CUDA_VISIBLE_DEVICES": "3"}, 1),
        (8, {"CUDA_VISIBLE_DEVICES": ""}, 1),
        (0, {"NUM_PROCESSES": "2"}, 2),
    ],
)
def test_a_process_for_each_gpu_that_is_visible(tmp_path, gpus, variables, processes):
    command = started(tmp_path, "vqav2", gpus=gpus, **variables)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if processes > 1:
        assert command[:5] == launcher
        command = command[5:]
    assert command[:2] == ["-m", "llava.eval.run"]


@pytest.mark.parametrize(
    ("script", "split", "task"),
    [
        ("docvqa", "val", "docvqa"),
        ("docvqa", "test", "docvqa_test"),
        ("qbench", "dev", "qbench"),
        ("qbench", "test", "qbench_test"),
        ("qbench_zh", "test", "qbench_zh_test"),
    ],
)
def test_a_split_that_goes_first_chooses_the_task(tmp_path, script, split, task):
    command = started(tmp_path, script, split, "--limit", "3")
    assert command[2:4] == ["--tasks", task]
    assert command[-2:] == ["--limit", "3"]
    assert split not in command
