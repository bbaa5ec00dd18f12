"""python -m llava.export: the model card, the conversion back, and an upload."""

import json

import pytest
import tiny
from huggingface_hub import ModelCard

from llava.export.__main__ import main
from llava.export.hub import HfApi

RUN = {
    "data": {"files": ["secret/place/mix.json"], "records": 5},
    "step": 3,
    "world_size": 2,
    "model_arguments": {"model_name_or_path": "lmsys/vicuna-7b-v1.5"},
    "training_arguments": {
        "learning_rate": 0.001,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tiny.save_llava(tmp_path_factory.mktemp("model") / "ours", mm_vision_tower="some/where/tower")
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nMine.\n")
    return folder


def test_the_card_says_what_the_model_is_made_of(ours, tmp_path):
    assert main([str(ours), str(tmp_path / "prism-7b")]) == 0
    card = ModelCard.load(tmp_path / "prism-7b" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == ["lmsys/vicuna-7b-v1.5"]
    rows = ("language model | lmsys/vicuna-7b-v1.5", "vision tower | tower", "projector | visualprism")
    rows += (
        "visual tokens per view | 9",
        "data | mix.json (5 records)",
        "learning rate | 0.001",
        "batch | 16",
    )
    for row in rows:
        assert f"| {row} |" in card.text, row
    assert "one of 1, 2, 3, 6" in card.text
    assert str(tmp_path) not in card.text
    assert "secret" not in card.text
    assert "pip install llava" not in card.text


def test_the_way_back_is_a_target(ours, tmp_path, capsys):
    exported, restored = str(tmp_path / "exported"), str(tmp_path / "restored")
    assert main([str(ours), exported]) == main([exported, restored, "--target", "llava"]) == 0
    assert (tmp_path / "restored" / "config.json").read_bytes() == (ours / "config.json").read_bytes()
    assert main([exported, restored, "--target", "llava"]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([exported, str(tmp_path / "more"), "--target", "llava", "--push", "a/b"]) == 1


def test_the_card_of_a_folder_with_code_says_how_it_is_loaded(ours, tmp_path):
    assert main([str(ours), str(tmp_path / "coded"), "--with_code"]) == 0
    card = (tmp_path / "coded" / "README.md").read_text()
    assert card.count("trust_remote_code=True") == 4
    assert "--trust-remote-code" in card
    assert "import llava" not in card


def test_push_uploads_the_folder_and_a_refusal_is_one_line(ours, tmp_path, monkeypatch, capsys):
    uploaded = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: f"https://hub/{name}")
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: uploaded.append(options))
    assert main([str(ours), str(tmp_path / "one"), "--push", "me/prism"]) == 0
    assert uploaded[0]["repo_id"] == "me/prism"
    assert uploaded[0]["folder_path"] == tmp_path / "one"
    assert 'model="me/prism"' in (tmp_path / "one" / "README.md").read_text()

    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert main([str(ours), str(tmp_path / "two"), "--push", "me/prism"]) == 1
    assert "--push me/prism: the upload failed (no network)" in capsys.readouterr().err
    assert (tmp_path / "two" / "config.json").is_file()
