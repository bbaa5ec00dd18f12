"""For tests of interrupted runs: a stage's flags, its command, and a comparison of two results."""

import json
from pathlib import Path

from training_parts import flags

ENTRY = Path(__file__).parents[2] / "llava" / "train" / "train_mem.py"


def stage_flags(parts: Path, output_dir: Path, stage: int, **changes) -> list[str]:
    if stage == 1:
        return flags(parts, output_dir, "captions.json", tune_mm_mlp_adapter=True, **changes)
    return flags(parts, output_dir, "conversations.json", version="qwen_2", **changes)


def logged_rows(output_dir: Path) -> list[tuple]:
    """(step, loss, learning rate, gradient norm) from the trainer's state and from metrics.jsonl."""
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
    assert logged_rows(output_dir) == logged_rows(expected)
    assert weights(output_dir) == weights(expected)
    assert {path.name for path in output_dir.iterdir()} == {path.name for path in expected.iterdir()}
