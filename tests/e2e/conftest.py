"""What training starts from, made once for all end-to-end tests."""

import json

import pytest
import tiny
from PIL import Image

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
