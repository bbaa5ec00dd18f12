"""A run's log, line by line: our lines, one progress bar, and no message of another library."""

import json
import logging
import os
import re
import subprocess
import warnings
from pathlib import Path

import pytest
import ranks
from training_parts import flags

from llava.quiet import MESSAGES, quiet_libraries

SCRIPTS = Path(__file__).parents[2] / "scripts"
OURS = (
    r"launch: \d+ x \d+ CPU processes, fp32",
    r"batch:  \d+ = .* accumulated",
    r"\d\d:\d\d:\d\d (loading|vision tower:|visual tokens per view:|conversation template:|packing:) .*",
    r"\d\d:\d\d:\d\d result: .*",
    r"\d\d:\d\d:\d\d (vision_tower|mm_projector|language_model) +[\d,]+ of +[\d,]+ parameters learn",
    r"\d\d:\d\d:\d\d \S+: \d+ records",
    r"measuring records: .*",
    r"\d+%\|[^|]*\| \d+/\d+ \[[^]]*\]",  # the bar of the steps
    r"\{'loss': .*\}",
    r"\{'train_runtime': .*\}",
)


def foreign_lines(log: str) -> list[str]:
    lines = (line.strip() for line in re.split(r"[\r\n]", log))
    return [line for line in lines if line and not any(re.fullmatch(ours, line) for ours in OURS)]


def test_a_script_prints_our_lines_alone(parts, tmp_path):
    settings = {
        **{
            "MODEL": parts / "language_model",
            "VISION_TOWER": parts / "tower",
            "OUTPUT_DIR": tmp_path / "run",
        },
        **{"DATA_PATH": parts / "captions.json", "IMAGE_FOLDER": parts / "images", "MAX_STEPS": 2},
        **{"GLOBAL_BATCH_SIZE": 4, "BATCH_SIZE": 2, "SAVE_STEPS": 1, "NUM_WORKERS": 1, "OMP_NUM_THREADS": 1},
    }
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **{k: str(v) for k, v in settings.items()}}
    done = subprocess.run(
        ["bash", SCRIPTS / "v1_5" / "pretrain.sh"],
        env={name: value for name, value in environment.items() if name != "TOKENIZERS_PARALLELISM"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert foreign_lines(done.stdout) == []
    assert "result: " in done.stdout


LORA = {"lora_enable": True, "lora_r": 4}
MODES = {
    "lora, checkpointing": (1, {**LORA, "gradient_checkpointing": True}),
    "4 bits": (1, {**LORA, "bits": 4}),
    "8 bits": (1, {**LORA, "bits": 8}),
    "packing with workers": (
        1,
        {"packing": True, "dataloader_num_workers": 1, "per_device_train_batch_size": 1},
    ),
    "bf16": (1, {"bf16": True}),
    "two ranks": (2, {}),
    "ZeRO-2": (2, {"deepspeed": SCRIPTS / "zero2.json", "gradient_accumulation_steps": 2}),
    "ZeRO-3": (2, {"deepspeed": SCRIPTS / "zero3.json"}),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_prints_our_lines_alone(parts, tmp_path, mode):
    world_size, changes = MODES[mode]
    log = tmp_path / "log"
    common = {"version": "qwen_2", "max_steps": 2, "save_steps": 1}
    argv = flags(parts, tmp_path / "run", "conversations.json", **{**common, **changes})
    assert set(ranks.run(argv, log, world_size)) == {0}, log.read_text()
    assert foreign_lines(log.read_text()) == []


def test_texts_that_are_cut_are_counted_and_not_warned_of(parts, tmp_path):
    turns = [{"from": "human", "value": "Count."}, {"from": "gpt", "value": "one two three " * 100}]
    (tmp_path / "long.json").write_text(json.dumps([{"id": "long", "conversations": turns}] * 4))
    argv = flags(parts, tmp_path / "run", "long.json", version="qwen_2", max_steps=1, model_max_length=100)
    log = tmp_path / "log"
    assert ranks.run([*argv, "--data_path", str(tmp_path / "long.json")], log) == [0], log.read_text()
    assert foreign_lines(log.read_text()) == []
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["truncated"] > 0


def test_an_unknown_message_of_the_same_library_is_shown(caplog):
    quiet_libraries()
    for name in MESSAGES:
        logging.getLogger(name).warning("something else")
    assert caplog.text.count("something else") == len(MESSAGES)
    with pytest.warns(FutureWarning, match="something else"):
        warnings.warn("something else", FutureWarning, stacklevel=1)


def test_what_bitsandbytes_says_of_a_kernel_is_left_out(caplog):
    quiet_libraries()
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning(
        "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure", "no kernels"
    )
    assert caplog.text == ""
