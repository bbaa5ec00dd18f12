"""A training script on two nodes, which are two launchers on this machine."""

import json
import os
import socket
import subprocess
from pathlib import Path

import tiny
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_stage_1_on_two_nodes_counts_both_in_the_batch_and_leaves_one_result(tmp_path, bpe_tokenizer):
    tiny.save_language_model(tmp_path / "language_model")
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    tiny.save_tower(tmp_path / "tower")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a red picture"}]
    records = [{"id": str(index), "image": "red.png", "conversations": turns} for index in range(16)]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    settings = {
        **{"MODEL": "language_model", "VISION_TOWER": "tower", "DATA_PATH": "captions.json"},
        **{"IMAGE_FOLDER": ".", "RUN_NAME": "tiny", "NUM_WORKERS": "0", "CUDA_VISIBLE_DEVICES": ""},
        **{"GLOBAL_BATCH_SIZE": "8", "BATCH_SIZE": "2", "OMP_NUM_THREADS": "1"},
        **{"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
    }
    nodes = [
        subprocess.Popen(
            ["bash", SCRIPTS / "v1_5" / "pretrain.sh"],
            cwd=tmp_path,
            env={**os.environ, **settings, "NODE_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert all("8 = 2 a device x 2 devices x 2 accumulated" in text for text in printed)
    result = tmp_path / "playground/checkpoints/tiny-pretrain"
    assert (result / "mm_projector.bin").is_file()
    state = json.loads((result / "trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"]) == (2, 2)  # 16 records, 8 a step
