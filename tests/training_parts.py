"""For end-to-end tests: the files from which training starts, the flags of a short run, and its losses."""

import json
from pathlib import Path

import tiny
from PIL import Image

COLOURS = ("red", "green", "blue")


def save_parts(folder: Path, bpe_tokenizer) -> Path:
    """Writes a language model, a tower, pictures and records; returns the folder."""
    tiny.save_language_model(folder / "language_model")
    bpe_tokenizer.save_pretrained(folder / "language_model")
    tiny.save_tower(folder / "tower")
    (folder / "images").mkdir()
    captions, conversations = [], []
    for index in range(12):
        colour = COLOURS[index % 3]
        Image.new("RGB", (40, 30), colour).save(folder / "images" / f"{index}.png")
        record = {"id": str(index), "image": f"{index}.png"}
        answer = {"from": "gpt", "value": f"a {colour} picture"}
        captions.append({**record, "conversations": [{"from": "human", "value": "<image>"}, answer]})
        question = {"from": "human", "value": "<image>\nWhich colour?"}
        conversations.append({**record, "conversations": [question, answer]})
    conversations[-1] = {
        "id": "text",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "conversations.json").write_text(json.dumps(conversations))
    return folder


def flags(parts: Path, output_dir: Path, data: str, **changes) -> list[str]:
    values = {
        "model_name_or_path": parts / "language_model",
        "vision_tower": parts / "tower",
        "data_path": parts / data,
        "image_folder": parts / "images",
        "output_dir": output_dir,
        "mm_projector_type": "visualprism",
        "version": "plain",
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 1,
        "report_to": "none",
        "dataloader_num_workers": 0,
        **changes,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return [item for name, value in given.items() for item in (f"--{name}", str(value))]


def losses(output_dir: Path) -> list[float]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]
