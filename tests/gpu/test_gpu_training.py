"""Training runs on the device in this process: a resume, the memory that is logged, quantised weights."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest
import torch
from measures import assert_near
from safetensors.torch import load_file
from training_parts import flags, save_parts
from transformers import TrainerCallback

from llava.model.checkpoint import read_projector
from llava.train.train import prepare, train

# Kernels of the backward pass may add in another order in each run. Adam divides by the gradient's size.
# If the gradient is only rounding, epsilon keeps the update small. In float32 without TF32, four steps then
# agree up to this relative error.
BOUND = 1e-5
COMMON = {"max_steps": 4, "save_steps": 2, "save_total_limit": 5, "learning_rate": 1e-3, "adam_epsilon": 1e-3}
STAGES = {
    1: {"data": "captions.json", "tune_mm_mlp_adapter": True},
    2: {"data": "conversations.json", "version": "qwen_2"},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory, bpe_tokenizer):
    return save_parts(tmp_path_factory.mktemp("parts"), bpe_tokenizer)


def argv(parts, output_dir, stage: int, device, **changes) -> list[str]:
    settings = {**COMMON, **STAGES[stage], **changes}
    settings["use_cpu"] = device.type == "cpu" or None
    return flags(parts, output_dir, settings.pop("data"), **settings)


def losses(output_dir) -> list[float]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def weights(output_dir, stage: int) -> dict[str, torch.Tensor]:
    if stage == 1:
        return read_projector(output_dir / "mm_projector.bin")
    return load_file(output_dir / "model.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(device, parts, tmp_path, stage):
    """It compares the losses of all steps and the final weights. All files later than step 2 were lost."""
    output_dir = tmp_path / "run"
    arguments = argv(parts, output_dir, stage, device, gradient_checkpointing=True)
    train(arguments)
    expected_losses, expected = losses(output_dir), weights(output_dir, stage)
    shutil.rmtree(output_dir / "checkpoint-4")
    for path in output_dir.iterdir():
        if path.is_file():
            path.unlink()
    train(arguments)
    found_losses, found = losses(output_dir), weights(output_dir, stage)
    assert len(found_losses) == len(expected_losses) == 4
    steps = zip(found_losses, expected_losses, strict=True)
    for step, (one, other) in enumerate(steps, start=1):
        assert_near(torch.tensor(one), torch.tensor(other), BOUND, f"the loss of step {step}")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            assert_near(found[name], value, BOUND, name, max(value.float().norm().item(), 1e-2))
        else:
            assert torch.equal(found[name], value), name
    # Steps differ by more than the bound, so a resume at another step or with other data would fail
    gaps = [abs(one - other) / other for one, other in pairwise(expected_losses)]
    assert max(gaps) > 10 * BOUND


def test_bf16_with_the_regulariser_and_packing_trains(device, parts, tmp_path):
    """With several images per row, the Sinkhorn regulariser and elastic budgets, in bf16 on a GPU."""
    arguments = argv(parts, tmp_path / "run", 2, device, bf16=device.type == "cuda" or None)
    extra = ["--packing", "True", "--use_sinkhorn_lsd", "True", "--elastic_scale_factors", "1", "2", "4"]
    train([*arguments, *extra])
    assert len(losses(tmp_path / "run")) == 4
    assert all(0 < loss < 40 for loss in losses(tmp_path / "run"))
    assert all(value.isfinite().all() for value in weights(tmp_path / "run", 2).values())


def test_fp16_trains_with_a_loss_scale(cuda, parts, tmp_path):
    train(argv(parts, tmp_path / "run", 2, cuda, fp16=True))
    assert all(value.isfinite().all() for value in weights(tmp_path / "run", 2).values())


def test_the_memory_that_is_logged_is_the_gpus(cuda, parts, tmp_path):
    train(argv(parts, tmp_path / "run", 1, cuda))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    most = torch.cuda.max_memory_allocated() / 2**30
    assert all(0 < row["peak_memory_gib"] <= most + 1e-3 for row in rows)


class NoWaits(TrainerCallback):
    """From the third step on, each wait for the GPU between a step's begin and its optimizer raises."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_optimizer_step(self, *args, **kwargs):
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_gpu_ahead_of_the_optimizer(cuda, parts, tmp_path):
    trainer = prepare(argv(parts, tmp_path / "run", 2, cuda, bf16=True, save_strategy="no"))
    trainer.add_callback(NoWaits())
    try:
        with trainer.folder_lock:
            trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.guard.lags
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize("bits", [4, 8])
def test_lora_over_quantised_weights_trains(cuda, parts, tmp_path, bits):
    for package in ("peft", "bitsandbytes"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra train)")
    lora = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "bits": bits, "bf16": True}
    trainer = prepare(argv(parts, tmp_path / "run", 2, cuda, save_strategy="no", **lora))
    with trainer.folder_lock:
        trainer.train()
    assert all(row["loss"] > 0 for row in trainer.state.log_history if "loss" in row)
