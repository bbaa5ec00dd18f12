"""Missing inputs of a run are reported with their flag before a model is loaded."""

import importlib.util
import json
import shutil

import pytest
from training_parts import flags

from llava.errors import UserError
from llava.train import train as stage
from llava.train.train import prepare


@pytest.fixture
def no_model(monkeypatch):
    def load_model(*arguments):
        pytest.fail("a model was to be loaded")

    monkeypatch.setattr(stage, "load_model", load_model)


def tower_without(parts, tmp_path, name: str):
    shutil.copytree(parts / "tower", tmp_path / "tower")
    (tmp_path / "tower" / name).unlink()
    return tmp_path / "tower"


MISSING = {  # case: (flags, message)
    "file": ({"data_path": "nowhere.json"}, "--data_path nowhere.json does not exist"),
    "JSONL file": ({"data_path": "nowhere.jsonl"}, "--data_path nowhere.jsonl does not exist"),
    "shards": ({"data_path": "no/{000..003}.tar", "max_steps": 1}, "4 of 4 shard.*--data_path"),
    "pattern of shards": ({"data_path": "no/*.tar", "max_steps": 1}, "1 of 1 shard.*--data_path"),
    "images": ({"image_folder": "nowhere"}, "--image_folder nowhere is not a folder"),
    "projector": (
        {"pretrain_mm_mlp_adapter": "no.bin"},
        "--pretrain_mm_mlp_adapter no.bin does not exist; .*pretrain.sh",
    ),
    "adapters": ({"lora_enable": True, "lora_weight_path": "no/where"}, "--lora_weight_path 'no/where'"),
    "tower": ({"vision_tower": "no/tower"}, "--vision_tower 'no/tower'"),
    "DeepSpeed": ({"deepspeed": "no/zero2.json"}, "--deepspeed no/zero2.json does not exist"),
    "language model": ({"model_name_or_path": "no/model"}, "--model_name_or_path 'no/model'"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_said_before_a_model_is_loaded(parts, tmp_path, no_model, case):
    changes, message = MISSING[case]
    with pytest.raises(UserError, match=message):
        prepare(flags(parts, tmp_path / "run", "captions.json", **changes))
    assert not (tmp_path / "run").exists()


def test_each_of_several_files_is_looked_for(parts, tmp_path, no_model):
    argv = [
        *flags(parts, tmp_path / "run", "captions.json"),
        "--data_path",
        str(parts / "captions.json"),
        "lost.json",
    ]
    with pytest.raises(UserError, match="--data_path lost.json.*does not exist"):
        prepare(argv)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data_path", "is a folder.*JSON.*--data_path"),
        ("pretrain_mm_mlp_adapter", "is a folder.*mm_projector.bin"),
        ("lora_weight_path", "no adapters"),
        ("vision_tower", "--vision_tower .*no readable config.json"),
        ("deepspeed", "is a folder.*DeepSpeed"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(parts, tmp_path, no_model, flag, message):
    (tmp_path / "other.d").mkdir()
    lora = {"lora_enable": True} if flag == "lora_weight_path" else {}
    with pytest.raises(UserError, match=f"--{flag} .*{message}" if "--" not in message else message):
        prepare(flags(parts, tmp_path / "run", "captions.json", **lora, **{flag: tmp_path / "other.d"}))


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
def test_a_tower_that_lacks_a_file_is_refused(parts, tmp_path, no_model, name):
    tower = tower_without(parts, tmp_path, name)
    with pytest.raises(UserError, match=f"--vision_tower .* no .*{name[:5]}"):
        prepare(flags(parts, tmp_path / "run", "captions.json", vision_tower=tower))


def test_a_damaged_deepspeed_configuration_is_named(parts, tmp_path, no_model):
    (tmp_path / "zero.json").write_text("{")
    with pytest.raises(UserError, match="--deepspeed .*zero.json.*JSON"):
        prepare(flags(parts, tmp_path / "run", "captions.json", deepspeed=tmp_path / "zero.json"))


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"lora_enable": True}, "peft"),
        ({"lora_enable": True, "bits": 4}, "bitsandbytes"),
        ({"deepspeed": "scripts/zero2.json"}, "deepspeed"),
    ],
)
def test_a_package_that_is_not_installed_is_said(parts, tmp_path, no_model, monkeypatch, changes, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest)
    )
    with pytest.raises(UserError, match=f"{package}.*not installed.*pip install"):
        prepare(flags(parts, tmp_path / "run", "captions.json", **changes))


def test_an_output_folder_that_cannot_be_written_to_is_said(parts, tmp_path, no_model):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output_dir .*cannot be written"):
        prepare(flags(parts, tmp_path / "file" / "run", "captions.json"))


def test_records_without_images_need_no_image_folder(parts, tmp_path):
    record = json.loads((parts / "conversations.json").read_text())[-1]
    (tmp_path / "text.json").write_text(json.dumps([record]))
    changes = {"data_path": tmp_path / "text.json", "image_folder": "nowhere", "version": "qwen_2"}
    assert prepare(flags(parts, tmp_path / "run", "captions.json", **changes)) is not None
