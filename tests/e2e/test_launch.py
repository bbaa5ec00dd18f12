"""The launchers of a training script: two launchers act as two nodes on one machine; how they end."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
from PIL import Image
from ports import free_port
from stages import ENTRY, logged_rows, weights

from llava.train import saving
from llava.train.folder_lock import LOCK_FILE, FolderLock

SCRIPTS = Path(__file__).parents[2] / "scripts"
RESULT = "playground/checkpoints/tiny-pretrain"


@pytest.fixture
def folder(tmp_path, bpe_tokenizer):
    """A folder for stage 1, with the parts from which it starts."""
    tiny.save_language_model(tmp_path / "language_model")
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    tiny.save_tower(tmp_path / "tower")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a red picture"}]
    records = [{"id": str(index), "image": "red.png", "conversations": turns} for index in range(16)]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    return tmp_path


def hear() -> None:
    """Stop ignoring SIGINT (as background jobs do) and SIGHUP (nohup); bash cannot trap ignored signals."""
    for signals in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signals, signal.SIG_DFL)


def start(folder: Path, **variables) -> subprocess.Popen:
    """Start stage 1 in its own session, as a terminal does."""
    settings = {
        **{"MODEL": str(folder / "language_model"), "VISION_TOWER": str(folder / "tower")},
        **{"DATA_PATH": str(folder / "captions.json"), "IMAGE_FOLDER": str(folder)},
        **{"RUN_NAME": "tiny", "NUM_WORKERS": "0", "CUDA_VISIBLE_DEVICES": ""},
        **{"GLOBAL_BATCH_SIZE": "8", "BATCH_SIZE": "2", "OMP_NUM_THREADS": "1"},
    }
    return subprocess.Popen(
        ["bash", SCRIPTS / "v1_5" / "pretrain.sh", "--lr_scheduler_type", "constant"],
        cwd=folder,
        env={**os.environ, **settings, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear,
    )


def start_nodes(folder: Path, **variables) -> list[subprocess.Popen]:
    """Start stage 1 with two launchers, each with its own cache, as two nodes have."""
    variables |= {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        start(folder, **variables, NODE_RANK=rank, LLAVA_INDEX_FOLDER=str(folder / f"index{rank}"))
        for rank in ("0", "1")
    ]


def test_two_nodes_killed_and_started_again_are_two_ranks_that_were_not(folder):
    nodes = start_nodes(folder, MAX_STEPS="1000000", SAVE_STEPS="2")
    while not saving.checkpoints(folder / RESULT) and all(node.poll() is None for node in nodes):
        time.sleep(0.05)
    for node in nodes:
        ranks.kill_tree(node.pid)
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert all("8 = 2 a device x 2 devices x 2 accumulated" in text for text in printed), printed
    # the learning rate is constant, so that a step does not depend on the number of steps
    max_steps = int(saving.checkpoints(folder / RESULT)[-1].name.split("-")[1]) + 2
    length = {"MAX_STEPS": str(max_steps), "SAVE_STEPS": "2"}

    nodes = start_nodes(folder, **length)
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert all(list((folder / f"index{rank}").glob("*.npy")) for rank in (0, 1))

    shown = start(folder, DRY_RUN="1", NUM_PROCESSES="2", OUTPUT_DIR=str(folder / "one"), **length)
    words = shlex.split(shown.communicate(timeout=300)[0].splitlines()[-1])
    flags = words[words.index(str(ENTRY)) + 1 :]
    assert ranks.run(flags, folder / "log", world_size=2) == [0, 0], (folder / "log").read_text()
    assert logged_rows(folder / RESULT) == logged_rows(folder / "one")
    assert weights(folder / RESULT) == weights(folder / "one")


# ---- What ends two ranks


@pytest.fixture
def training(folder):
    """(A script whose two ranks train without an end, all its descendant processes)."""
    script = start(folder, NUM_PROCESSES="2", MAX_STEPS="1000000", SAVE_STEPS="1000000")
    metrics = folder / RESULT / "metrics.jsonl"
    while script.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.05)
    assert script.poll() is None, script.stdout.read()
    processes = psutil.Process(script.pid).children(recursive=True)
    yield script, processes
    for process in processes:  # also orphans of a script that a test killed
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    script.kill()
    script.communicate()


def launcher_of(processes: list[psutil.Process]) -> psutil.Process:
    return next(process for process in processes if "torch.distributed.run" in process.cmdline())


def test_ranks_end_with_a_killed_launcher_and_leave_the_folder(folder, training):
    script, processes = training
    launcher_of(processes).kill()
    printed, _ = script.communicate(timeout=300)  # to the end of all that could write there
    assert script.returncode == 137
    assert printed.count("train_mem.py: the launcher, process ") == 1, printed
    assert "Traceback" not in printed
    assert saving.checkpoints(folder / RESULT) == []
    FolderLock(folder / RESULT).release()  # no process holds the lock


def test_ranks_save_and_end_with_a_closed_terminal(folder, training):
    """tests/interface/test_training_scripts.py tests Ctrl-C, test_stoppable_launch.py a killed shell."""
    script, _ = training
    os.killpg(script.pid, signal.SIGHUP)
    printed, _ = script.communicate(timeout=300)  # to the end of all that could write there
    assert script.returncode == 143, printed
    (checkpoint,) = saving.checkpoints(folder / RESULT)
    assert printed.count("train_mem.py: SIGTERM: stopped after step") == 1, printed
    assert f"The last complete checkpoint is {RESULT}/{checkpoint.name}" in printed
    assert "train_mem.py: the launcher" not in printed
    assert not (folder / RESULT / LOCK_FILE).exists()
