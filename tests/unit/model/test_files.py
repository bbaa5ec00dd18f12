"""Files damaged by a download or a full disk: one line names the file and says what to do."""

import json
import shutil

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from llava.errors import UserError
from llava.model.adapters import VISION_MODULES, linear_maps
from llava.model.builder import load_pretrained_model
from llava.model.files import check_weights, read_bin
from llava.train.saving import learned_state, save_adapters, save_projector

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\n"
    b"size 12345\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


def truncate(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])


DAMAGES = {
    "Git-LFS pointer": lambda file: file.write_bytes(POINTER),
    "web page": lambda file: file.write_bytes(PAGE),
    "empty": lambda file: file.write_bytes(b""),
    "cut short": lambda file: truncate(file, 0.6),
    "header cut short": lambda file: file.write_bytes(file.read_bytes()[:7]),
    "noise": lambda file: file.write_bytes(bytes(range(1, 256)) * 8),
}
WRONG_JSON = {
    **DAMAGES,
    "list": lambda file: file.write_text("[]"),
    "number": lambda file: file.write_text("3"),
    "null": lambda file: file.write_text("null"),
}
SAYS = {
    "Git-LFS pointer": "is a Git-LFS pointer.*git lfs pull",
    "web page": "is a web page",
    "empty": "is empty",
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory, bpe_tokenizer, sentencepiece_model):
    """A folder of each kind, as training or publishers write it; each test damages its own copy."""
    folder = tmp_path_factory.mktemp("files")
    model = tiny.build(folder)
    bpe_tokenizer.save_pretrained(folder / "language_model")
    for name, size in {"whole": "5GB", "shards": "60KB"}.items():
        model.save_pretrained(folder / name, max_shard_size=size)
    state = model.state_dict()
    model.config.save_pretrained(folder / "bin")
    torch.save(state, folder / "bin" / "pytorch_model.bin")
    model.config.save_pretrained(folder / "bin shards")
    halves = {f"pytorch_model-0000{n}-of-00002.bin": list(state)[n - 1 :: 2] for n in (1, 2)}
    for file, names in halves.items():
        torch.save({name: state[name] for name in names}, folder / "bin shards" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / "bin shards" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    model.save_pretrained(folder / "sentencepiece")
    shutil.copy(sentencepiece_model, folder / "sentencepiece" / "tokenizer.model")
    marks = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "sentencepiece" / "tokenizer_config.json").write_text(json.dumps(marks))
    for name in ("whole", "shards", "bin", "bin shards"):
        bpe_tokenizer.save_pretrained(folder / name)
    for name in ("whole", "shards", "bin", "bin shards", "sentencepiece"):
        shutil.copy(folder / "tower" / "preprocessor_config.json", folder / name)
    save_projector(model, folder / "stage 1")
    config = LoraConfig(r=2, target_modules=linear_maps(model), exclude_modules=VISION_MODULES)
    model.add_adapter(config)
    save_adapters(model, folder / "lora", learned_state(model))
    return folder


def load(folder, kind):
    """Loads a model from the parts below `folder`, as a user would."""
    base = str(folder / "language_model") if kind in ("stage 1", "lora", "language_model", "tower") else None
    path = {"language_model": "stage 1", "tower": "stage 1"}.get(kind, kind)
    config = folder / path / "config.json"
    if kind == "tower":
        fields = json.loads(config.read_text()) | {"mm_vision_tower": str(folder / "tower")}
        config.write_text(json.dumps({k: v for k, v in fields.items() if k != "mm_vision_config"}))
    return load_pretrained_model(str(folder / path), base)


FILES = [
    ("whole", "model.safetensors"),
    ("shards", "model-00002-of-*.safetensors"),
    ("bin", "pytorch_model.bin"),
    ("bin shards", "pytorch_model-00002-of-00002.bin"),
    ("sentencepiece", "tokenizer.model"),
    ("stage 1", "mm_projector.bin"),
    ("lora", "adapter_model.safetensors"),
    ("lora", "non_lora_trainables.bin"),
    ("language_model", "model.safetensors"),
    ("tower", "model.safetensors"),
]
JSON_FILES = [
    ("whole", "config.json"),
    ("whole", "generation_config.json"),
    ("whole", "tokenizer.json"),
    ("whole", "tokenizer_config.json"),
    ("whole", "preprocessor_config.json"),
    ("shards", "model.safetensors.index.json"),
    ("bin shards", "pytorch_model.bin.index.json"),
    ("lora", "adapter_config.json"),
    ("lora", "config.json"),
    ("language_model", "config.json"),
    ("tower", "config.json"),
    ("tower", "preprocessor_config.json"),
]
CASES = [(*file, damage) for file in FILES for damage in DAMAGES]
CASES += [(*file, damage) for file in JSON_FILES for damage in WRONG_JSON]


def copied(sources, folder, kind):
    """Copies the parts that loading `kind` needs, so that a test can damage them."""
    for name in {kind, "language_model", "tower", "stage 1"}:
        shutil.copytree(sources / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pattern", "damage"), CASES)
def test_a_damaged_file_is_named_on_one_line(sources, tmp_path, kind, pattern, damage):
    file = next(copied(sources, tmp_path, kind).joinpath(kind).glob(pattern))
    WRONG_JSON[damage](file)
    with pytest.raises(UserError) as caught:
        load(tmp_path, kind)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert caught.match(SAYS.get(damage, "again|give a file"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "shards", "bin", "bin shards", "sentencepiece", "stage 1", "lora"])
def test_what_is_whole_loads(sources, tmp_path, kind):
    load(copied(sources, tmp_path, kind), kind)


@pytest.mark.parametrize("kind", ["shards", "bin shards"])
def test_missing_shards_are_all_named(sources, tmp_path, kind):
    folder = copied(sources, tmp_path, kind) / kind
    shards = sorted(folder.glob("*-of-*"))
    for shard in shards[1:]:
        shard.unlink()
    with pytest.raises(UserError, match=rf"{len(shards) - 1} are missing: {shards[1].name}"):
        load(tmp_path, kind)


@pytest.mark.parametrize("kind", ["shards", "bin shards"])
def test_shards_without_their_index_are_told_from_no_weights(sources, tmp_path, kind):
    folder = copied(sources, tmp_path, kind) / kind
    next(folder.glob("*.index.json")).unlink()
    with pytest.raises(UserError, match=r"-of-.*\*\.index\.json"):
        load(tmp_path, kind)


@pytest.mark.parametrize("table", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_its_table_is_named(sources, tmp_path, table):
    file = copied(sources, tmp_path, "shards") / "shards" / "model.safetensors.index.json"
    file.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"index\.json.*weight_map"):
        load(tmp_path, "shards")


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("whole", "tokenizer.json", "copy tokenizer.json"),
        ("tower", "preprocessor_config.json", "copy preprocessor_config.json"),
        ("tower", "model.safetensors", "no weights"),
        ("tower", "config.json", "no readable config.json"),
        ("lora", "adapter_model.safetensors", "no adapters"),
    ],
)
def test_a_missing_file_says_what_to_copy(sources, tmp_path, kind, name, says):
    (copied(sources, tmp_path, kind) / kind / name).unlink()
    with pytest.raises(UserError, match=says) as caught:
        load(tmp_path, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1], {"a": 1}, torch.ones(2), "text"])
def test_a_file_of_torch_that_holds_no_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "mm_projector.bin")
    with pytest.raises(UserError, match=r"mm_projector\.bin.*tensors"):
        read_bin(tmp_path / "mm_projector.bin")


def test_a_folder_in_place_of_its_file_is_named(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_bin(tmp_path)


def test_torchs_older_format_is_read_whole_and_refused_cut_short(tmp_path):
    file, state = tmp_path / "mm_projector.bin", {"model.mm_projector.0.weight": torch.randn(8, 8)}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert torch.equal(read_bin(file, mmap=True)["model.mm_projector.0.weight"], state.popitem()[1])
    for part in (0.1, 0.5, 0.9, 0.99):
        shutil.copy(file, tmp_path / "cut.bin")
        truncate(tmp_path / "cut.bin", part)
        with pytest.raises(UserError, match=r"cut\.bin.*damaged"):
            read_bin(tmp_path / "cut.bin")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.floats(0, 1, exclude_max=True),
    name=st.sampled_from(["whole/model.safetensors", "stage 1/mm_projector.bin"]),
)
def test_a_file_cut_anywhere_is_refused_by_its_header_alone(sources, tmp_path, part, name):
    cut = tmp_path / f"cut{name[-12:].replace('/', '')}"
    shutil.copy(sources / name, cut)
    truncate(cut, part)
    with pytest.raises(UserError, match=cut.name):
        check_weights(cut)


def test_a_value_of_the_wrong_type_is_named(sources, tmp_path):
    file = copied(sources, tmp_path, "whole") / "whole" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_size": "wide"}))
    with pytest.raises(UserError, match=r"config\.json.*hidden_size.*int.*str"):
        load(tmp_path, "whole")


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_an_object_that_is_no_tokenizer_is_named(sources, tmp_path, content):
    file = copied(sources, tmp_path, "whole") / "whole" / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json.*not a tokenizer"):
        load(tmp_path, "whole")
