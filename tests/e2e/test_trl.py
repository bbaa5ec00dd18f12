"""TRL's SFTTrainer trains exported folders, as docs/export.md shows."""

import copy
import json
import re
from pathlib import Path

import exports
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from llava.export.folder import export

pytest.importorskip("trl", reason="needs TRL, which the extra dev brings on Python 3.11 or newer")

PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text()
CHAT, TRAIN, ADAPTERS = (
    next(text for text in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S) if name in text)
    for kind, name in (("json", "messages"), ("python", "SFTTrainer"), ("python", "LoraConfig"))
)
ANSWERS = {"red": "A red bus stands in front.", "blue": "Two white houses."}
TUNED = Path("playground/tuned")
BUILDS = {
    "native": {"mm_projector_type": "visualprism_v2", "image_aspect_ratio": "slice"},
    "stock": {"mm_projector_type": "mlp2x_gelu"},
}


@pytest.fixture
def world(tmp_path, monkeypatch, bpe_tokenizer):
    """Makes the page's folder and file of chats in the working directory; returns the folder."""

    def make(build: str) -> Path:
        fields = {"conv_version": "qwen_2", **BUILDS[build]}
        ours = exports.save_whole(tmp_path / "ours", copy.deepcopy(bpe_tokenizer), **fields)
        export(str(ours), tmp_path / "playground/exported")
        lines = []
        for index, colour in enumerate(list(ANSWERS) * 4):
            Image.new("RGB", (50 + 20 * index, 60), colour).save(f"{index}.png")
            chat = json.loads(CHAT) | {"images": [f"{index}.png"]}
            chat["messages"][1]["content"] = ANSWERS[colour]
            lines.append(json.dumps(chat) + "\n")
        Path("chats.jsonl").write_text("".join(lines))
        return Path("playground/exported")

    monkeypatch.chdir(tmp_path)
    return make


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights as AutoModelForImageTextToText loads them."""
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The names of the weights of `before` that are others in `after`."""
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def trained(text: str, learning_rate: str, **names):
    """Run the page's code on a CPU, with a learning rate that suits a tiny model; returns its trainer."""
    exec(text.replace("2e-5", f"{learning_rate}, logging_steps=1, bf16=False"), names)
    losses = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    return names["trainer"]


@pytest.mark.parametrize("build", BUILDS)
def test_projector_and_language_model_learn_and_a_frozen_tower_stays(world, build):
    before = weights_of(world(build))
    trainer = trained(TRAIN, "1e-3")
    after = weights_of(TUNED)
    parts = {name for name in before if not name.startswith("model.vision_tower.")}
    assert {name for name in parts if name.endswith(".weight")} <= changed(before, after) <= parts
    assert not changed(trainer.model.state_dict(), after)


def test_adapters_and_a_projector_learn_and_load(world):
    before, names = weights_of(world("native")), {}
    exec(ADAPTERS, names)
    trainer = trained(TRAIN.replace("train_dataset", "peft_config=adapters, train_dataset"), "1e-2", **names)
    loaded = AutoModelForImageTextToText.from_pretrained(TUNED)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected, found = trainer.model.eval()(**batch).logits, loaded.eval()(**batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    learned = changed(before, trainer.model.merge_and_unload().state_dict())
    adapted = {name for name in before if "language_model" in name and name.endswith("_proj.weight")}
    assert adapted < learned
    assert {name.split(".")[1] for name in learned - adapted} == {"multi_modal_projector"}
