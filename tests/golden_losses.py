"""Two small recipes, whose losses are kept step by step in tests/golden/losses."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from training_parts import flags, save_parts
from transformers import PreTrainedModel

from llava.train import train

FOLDER = Path(__file__).parent / "golden" / "losses"
# Tolerance relative to a loss. Other machines and versions of torch add numbers in another order.
TOLERANCE = 1e-4
COMMON = {
    "max_steps": 8,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "scale_factor": 2,
}
STAGE_1 = {"data": "captions.json", "tune_mm_mlp_adapter": True, "learning_rate": 1e-2}
STAGE_2 = {"data": "conversations.json", "version": "qwen_2", "learning_rate": 1e-2, "mm_projector_lr": 1e-3}
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "use_sinkhorn_lsd": True}
# Maps a name to the parts with random initial weights, and to the flags
RECIPES = {"stage1": ("mm_projector", STAGE_1), "stage2_lora": ("lora_A", {**STAGE_2, **LORA})}


def save_golden_parts(folder: Path, bpe_tokenizer) -> Path:
    """Writes the parts from which each run starts. Pictures are noise, so that batch norms get a variance."""
    torch.manual_seed(0)
    save_parts(folder, bpe_tokenizer)
    for index, file in enumerate(sorted((folder / "images").iterdir())):
        pixels = np.random.default_rng(index).integers(256, size=(56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return folder


def set_weights(model: PreTrainedModel, part: str) -> None:
    """Sets random initial matrices: another version of torch may draw other numbers from the same seed."""
    for name, matrix in model.named_parameters():
        if part in name and matrix.ndim > 1 and matrix.any():
            drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(matrix.shape)
            matrix.data.copy_(torch.from_numpy(drawn / matrix[0].numel() ** 0.5))


def run(parts: Path, folder: Path) -> dict[str, list[float]]:
    """Runs both recipes, the second with the projector of the first, and returns the losses of each."""
    losses = {}
    for name, (part, recipe) in RECIPES.items():
        changes = {**COMMON, **recipe}
        if name != "stage1":
            changes["pretrain_mm_mlp_adapter"] = folder / "stage1" / "mm_projector.bin"
        trainer = train.prepare(flags(parts, folder / name, changes.pop("data"), **changes))
        set_weights(trainer.model, part)
        with trainer.folder_lock:
            train.run(trainer)
        losses[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses


def file_of(recipe: str) -> Path:
    return FOLDER / f"{recipe}.json"


def write(losses: dict[str, list[float]]) -> None:
    for name, values in losses.items():
        file_of(name).write_text(json.dumps({"loss": values}, indent=2) + "\n")


def read(recipe: str) -> list[float]:
    return json.loads(file_of(recipe).read_text())["loss"]
