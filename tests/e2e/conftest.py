"""What training starts from, made once for all end-to-end tests."""

import json

import pytest
import tiny
from modes import run
from PIL import Image
from test_training import flags

from llava.train.train import train

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def parts(tmp_path_factory, bpe_tokenizer):
    """A language model, a tower, pictures and records, as a user has them before training."""
    folder = tmp_path_factory.mktemp("parts")
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


@pytest.fixture(scope="session")
def qwen(parts, bpe_tokenizer):
    """A language model whose attention has biases."""
    folder = parts / "qwen2"
    tiny.save_language_model(folder, "qwen2")
    bpe_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stage1(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes") / "stage1"
    train(flags(parts, folder, "captions.json", tune_mm_mlp_adapter=True))
    return folder


@pytest.fixture(scope="session")
def whole(parts, stage1):
    """Stage 2's folder, which sees by itself."""
    folder = stage1.parent / "stage2"
    run(parts, folder, pretrain_mm_mlp_adapter=stage1 / "mm_projector.bin")
    return folder
