"""Both stages on a small scale, run by their scripts with the settings that these choose on a GPU.

They are bf16 with TF32, gradient checkpointing, and data workers that pin memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from training_parts import save_parts

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_projector

ROOT = Path(__file__).parents[2]
STEPS = 3


@pytest.fixture(scope="module")
def parts(tmp_path_factory, bpe_tokenizer):
    return save_parts(tmp_path_factory.mktemp("parts"), bpe_tokenizer)


def launch(parts: Path, folder: Path, device, script: str, *flags: str, **variables) -> str:
    """Run a script to its end, in `folder`; returns its output."""
    settings = {
        **{
            "MODEL": parts / "language_model",
            "VISION_TOWER": parts / "tower",
            "IMAGE_FOLDER": parts / "images",
        },
        **{"PROJECTOR_TYPE": "visualprism", "SCALE_FACTOR": "2", "RUN_NAME": "tiny", "MAX_STEPS": STEPS},
        **{"GLOBAL_BATCH_SIZE": "4", "BATCH_SIZE": "2", "NUM_WORKERS": "1", "LEARNING_RATE": "1e-3"},
        **{"NUM_PROCESSES": "1", "DEEPSPEED_CONFIG": "none", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        "PYTHON": sys.executable,
        **{"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        **variables,
    }
    if device.type == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
    elif device.index is not None or torch.cuda.device_count() > 1:
        settings["CUDA_VISIBLE_DEVICES"] = str(device.index or 0)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *flags],
        cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "Traceback" not in printed, printed
    return printed


def both_stages(parts: Path, folder: Path, device, second: str = "finetune.sh", **variables) -> Path:
    """Run stage 1, then stage 2 or another script from its projector; returns the last result's folder."""
    common = {"LEARNING_RATE": "1e-3", **variables}
    launch(parts, folder, device, "pretrain.sh", DATA_PATH=parts / "captions.json", **common)
    stage1 = folder / "playground" / "checkpoints" / "tiny-pretrain"
    assert_losses_are_finite(stage1)
    projector = read_projector(stage1 / "mm_projector.bin")
    assert all(value.isfinite().all() for value in projector.values())
    records = {"DATA_PATH": parts / "conversations.json", "VERSION": "qwen_2"}
    launch(parts, folder, device, second, **common, **records)
    result = folder / "playground" / "checkpoints" / f"tiny-{Path(second).stem}"
    assert_losses_are_finite(result)
    return result


def assert_losses_are_finite(result: Path) -> None:
    state = json.loads((result / "trainer_state.json").read_text())
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert state["global_step"] == len(losses) == STEPS
    assert all(0 < loss < 20 for loss in losses)


def assert_answers(folder: Path, device, base: Path | None = None) -> None:
    """Check that the folder loads on the device with default flags, and answers about a picture."""
    tokenizer, model, processor, _ = load_pretrained_model(
        str(folder), base and str(base), device=str(device)
    )
    assert model.device.type == device.type
    assert (model.dtype == torch.float32) == (device.type == "cpu")
    pixels = processor(Image.new("RGB", (40, 30), "red"), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[*tokenizer("What?").input_ids, IMAGE_TOKEN_INDEX]])
    answer = model.generate(ids, images=pixels.to(device, model.dtype), max_new_tokens=3, do_sample=False)
    assert answer.shape[0] == 1
    assert answer.max() < tiny.VOCABULARY


def changed(parts: Path, result: Path) -> set[str]:
    """The names of the language model's weights that differ from those before training."""
    before = load_file(parts / "language_model" / "model.safetensors")
    after = load_file(result / "model.safetensors")
    assert all(value.isfinite().all() for value in after.values())
    return {name for name, value in before.items() if not torch.equal(value, after[name].to(value.dtype))}


@pytest.mark.xdist_group("scripts without DeepSpeed")
def test_both_stages_without_deepspeed_leave_a_model_that_answers(device, parts, tmp_path):
    result = both_stages(parts, tmp_path, device)
    names = set(load_file(parts / "language_model" / "model.safetensors"))
    assert (
        changed(parts, result) == names
    )  # its weights are in float32 and are trained, whatever type they are cast to
    run = json.loads((result / "run.json").read_text())
    if (
        shutil.which("nvidia-smi") and device.type == "cuda"
    ):  # with it, the script finds out which GPUs there are
        assert run["training_arguments"]["bf16"] is run["training_arguments"]["tf32"] is True
    assert_answers(result, device)


@pytest.mark.xdist_group("LoRA scripts")
def test_stage_2_by_lora_leaves_adapters_that_answer_over_their_base(device, parts, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed (extra train)")
    result = both_stages(parts, tmp_path, device, "finetune_lora.sh", LORA_R=4, LORA_ALPHA=8)
    assert (result / "adapter_config.json").is_file()
    assert_answers(result, device, parts / "language_model")


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_both_stages_with_deepspeed_leave_a_model_that_answers(device, parts, tmp_path, config):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (extra train)")
    if device.type == "cpu":
        pytest.skip("tests/e2e/test_deepspeed.py has DeepSpeed on CPUs")
    file = ROOT / "scripts" / f"{config}.json"
    result = both_stages(parts, tmp_path, device, DEEPSPEED_CONFIG=file)
    assert changed(parts, result)
    assert_answers(result, device)
