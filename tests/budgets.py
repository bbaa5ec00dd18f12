"""Computes a training step's peak memory with the budget, to compare it with a measurement on a GPU."""

import json
from collections.abc import Iterable
from pathlib import Path

from llava.benchmark.speed.shapes import Shape
from llava.train.memory import GIB, Batch, Zero, budget
from llava.train.model_size import size_of
from llava.train.recipe import parse


def save_shapes(folder: Path, shapes: Iterable[Shape]) -> Path:
    """Writes config.json files for the benchmark's shapes, without weights."""
    for shape in shapes:
        config = {"model_type": shape.family, **shape.language_config()}
        for name, written in {shape.name: config, f"{shape.name}-tower": shape.tower}.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(written))
    return folder


def peak_gib(folder: Path, measured: dict, row: dict) -> float:
    """The peak of a step of `python -m llava.benchmark step`. AdamW's state is in bfloat16 like the weights.

        Args:
    folder: the folder that save_shapes wrote.
    measured: the benchmark's settings.
    row: a row of the benchmark's results.
    """
    positions = measured["batch_size"] * (row["tokens"] + measured["text_tokens"])
    flags = ["--model_name_or_path", str(folder / measured["shape"]), "--data_path", "data.json"]
    flags += ["--vision_tower", str(folder / f"{measured['shape']}-tower"), "--mm_vision_image_size", "336"]
    flags += ["--mm_projector_type", row["name"], "--scale_factor", str(row["scale_factor"] or 2)]
    flags += ["--use_liger_kernel", str(measured["use_liger_kernel"])]
    flags += ["--bf16", "True", "--gpu_memory_mib", "1"]
    flags += ["--lora_enable", "True", "--lora_r", "128"] if measured["lora"] else []
    size = size_of(*parse(flags)[1:])
    assert size.tokens == row["tokens"]
    batch = Batch(measured["batch_size"], positions // measured["batch_size"])
    held = budget(size, Zero("benchmark", 2), 1, batch, recompute=measured["gradient_checkpointing"])
    logits = measured["batch_size"] * measured["answer_tokens"] * size.vocabulary
    loss = min(held.loss, logits * 12 + size.head_gradient)
    return (held.weights + 4 * size.learning + held.vision + loss + held.activations) / GIB
