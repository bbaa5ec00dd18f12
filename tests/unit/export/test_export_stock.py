"""Models with the projector mlp2x_gelu become folders for transformers' own classes."""

import copy
import json
import shutil

import exports
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from llava.errors import UserError
from llava.export.folder import export, whole_folder
from llava.model.adapters import VISION_MODULES

pytestmark = pytest.mark.slow

MLP = {"mm_projector_type": "mlp2x_gelu"}
NEXT = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
CHATS = [[("What is it?", 1, None)], [("Which of the two?", 2, "The second."), ("Why?", 0, None)]]


@pytest.fixture
def tokenizer(bpe_tokenizer):
    return copy.deepcopy(bpe_tokenizer)


@pytest.mark.transformers
@pytest.mark.parametrize(
    ("family", "tower", "fields"),
    [
        ("llama", "clip", {}),
        ("llama", "clip", {"image_aspect_ratio": "pad", "mm_vision_select_feature": "cls_patch"}),
        ("qwen2", "siglip", {"image_aspect_ratio": "pad", "mm_vision_select_layer": -1}),
        ("qwen3", "dinov2", {"conv_version": "qwen_2"}),
        ("mistral", "clip", NEXT),
        ("llama", "siglip", {**NEXT, "image_grid_pinpoints": [[112, 56], [56, 168]]}),
    ],
)
def test_transformers_own_classes_give_our_logits(tmp_path, tokenizer, family, tower, fields):
    folder = exports.save_whole(tmp_path / "ours", tokenizer, family, tower, **MLP, **fields)
    export(str(folder), tmp_path / "theirs")
    theirs = exports.Theirs(tmp_path / "theirs")
    kind = "LlavaNext" if "mm_patch_merge_type" in fields else "Llava"
    assert type(theirs.model).__name__ == f"{kind}ForConditionalGeneration"
    exports.assert_same_logits(exports.Ours(folder), theirs, CHATS, exports.pictures(3))


def test_tied_words_stay_tied_and_end_of_turn_ends_an_answer(tmp_path, tokenizer):
    folder = exports.save_whole(tmp_path / "ours", tokenizer, "qwen2", **MLP, conv_version="qwen_2")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    export(str(folder), tmp_path / "theirs")
    theirs = exports.Theirs(tmp_path / "theirs")
    words = theirs.model.get_input_embeddings().weight
    assert theirs.model.lm_head.weight is words
    assert len(words) % 64 == 0
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in theirs.model.generation_config.eos_token_id
    exports.assert_same_logits(exports.Ours(folder), theirs, CHATS, exports.pictures(3))


def test_the_added_words_are_the_mean_of_the_known(tmp_path, tokenizer):
    folder = exports.save_whole(tmp_path / "ours", tokenizer, vocab_size=len(tokenizer), **MLP)
    export(str(folder), tmp_path / "theirs")
    theirs = exports.Theirs(tmp_path / "theirs")
    words = theirs.model.get_input_embeddings().weight.detach()
    assert theirs.processor.image_token_id == len(tokenizer)
    torch.testing.assert_close(words[len(tokenizer)], words[: len(tokenizer)].mean(dim=0))


def split(folder):
    """Splits weights into two shards of bfloat16, with their index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: weights[name].bfloat16() for name in own}, folder / file, {"format": "pt"})
    where = {name: file for file, own in shards.items() for name in own}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))


def test_shards_are_written_one_by_one_in_their_own_type(tmp_path, tokenizer, monkeypatch):
    folder = exports.save_whole(tmp_path / "ours", tokenizer, **MLP)
    split(folder)
    monkeypatch.setattr(
        "llava.export.folder.load_pretrained_model", None
    )  # the export must not build the model
    export(str(folder), tmp_path / "theirs")
    assert len(list((tmp_path / "theirs").glob("model-*-of-00002.safetensors"))) == 2
    model = exports.Theirs(tmp_path / "theirs", dtype="auto").model
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_a_folder_as_llava_published_it_is_exported(tmp_path, tokenizer):
    """It has torch.save's files, the tower's older weight names, constants, and model_type llava."""
    folder = exports.save_whole(tmp_path / "ours", tokenizer, **MLP)
    ours = exports.Ours(folder)
    tower, file = "vision_tower.vision_tower.", folder / "model.safetensors"
    weights = {name.replace(tower, f"{tower}vision_model."): v for name, v in load_file(file).items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(weights, folder / "pytorch_model.bin")
    file.unlink()
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "slice_separator_ids", "mm_vision_config"):
        config.pop(name)
    config |= {"model_type": "llava", "rope_theta": 10000.0, "freeze_mm_mlp_adapter": False}
    (folder / "config.json").write_text(json.dumps(config))
    export(str(folder), tmp_path / "theirs")
    exports.assert_same_logits(ours, exports.Theirs(tmp_path / "theirs"), CHATS, exports.pictures(3))


def test_a_tower_that_lies_elsewhere_comes_along(tmp_path, tokenizer):
    folder = exports.save_whole(tmp_path / "ours", tokenizer, **MLP)
    ours = exports.Ours(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "vision_tower" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    export(str(folder), tmp_path / "theirs")
    exports.assert_same_logits(ours, exports.Theirs(tmp_path / "theirs"), CHATS, exports.pictures(3))


def test_a_projector_and_adapters_are_exported_over_their_base(tmp_path, tokenizer):
    from peft import LoraConfig, get_peft_model

    whole = exports.save_whole(tmp_path / "whole", tokenizer, **MLP)
    base = tmp_path / "whole-parts" / "language_model"
    tokenizer.save_pretrained(base)
    projector = tmp_path / "projector"
    projector.mkdir()
    weights = load_file(whole / "model.safetensors")
    own = {name: value for name, value in weights.items() if "mm_projector" in name}
    torch.save(own, projector / "mm_projector.bin")
    shutil.copy(whole / "config.json", projector)
    export(str(projector), tmp_path / "from-projector", str(base))
    ours = exports.Ours(projector, str(base))
    exports.assert_same_logits(ours, exports.Theirs(tmp_path / "from-projector"), CHATS, exports.pictures(3))
    adapters = tmp_path / "adapters"
    lora = LoraConfig(r=2, target_modules=["q_proj"], exclude_modules=VISION_MODULES)
    tuned = get_peft_model(exports.Ours(whole).model, lora)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.normal_()
    tuned.save_pretrained(adapters)
    shutil.copy(whole / "config.json", adapters)
    torch.save(own, adapters / "non_lora_trainables.bin")
    export(str(adapters), tmp_path / "merged", str(whole))
    ours = exports.Ours(adapters, str(whole))
    exports.assert_same_logits(ours, exports.Theirs(tmp_path / "merged"), CHATS, exports.pictures(3))


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, tokenizer):
    folder = exports.save_whole(tmp_path / "ours", tokenizer, **MLP)
    target = tmp_path / "theirs"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export(str(folder), tmp_path / "full")
    mpt = exports.save_whole(tmp_path / "mpt", tokenizer, "mpt", **MLP)
    with pytest.raises(UserError, match="is an MPT"):
        export(str(mpt), target)
    text_only = tiny.save_language_model(tmp_path / "text")
    with pytest.raises(UserError, match="text-only"):
        export(text_only, target)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.mm_projector.0.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="missing model.mm_projector.0.weight"):
        export(str(folder), target)
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_whole_or_not_there(tmp_path):
    def write_half():
        with whole_folder(tmp_path / "out") as scratch:
            (scratch / "half").write_text("?")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert not list(tmp_path.iterdir())
