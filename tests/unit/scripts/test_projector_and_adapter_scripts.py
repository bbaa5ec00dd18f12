"""Merged adapters give the unmerged logits; an extracted projector equals the model's, for all layouts."""

import json

import extract_mm_projector
import merge_lora_weights
import pytest
import tiny
import torch
from peft import LoraConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.adapters import VISION_MODULES, linear_maps
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_projector
from llava.train.saving import learned_state, save_adapters

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8]])
IMAGES = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, images=IMAGES).logits


def with_adapters(folder, tokenizer, family):
    """Saves a multimodal model with nonzero adapters to folder/lora; its base is folder/language_model."""
    model = tiny.build(folder, family)
    tokenizer.save_pretrained(folder / "language_model")
    maps = linear_maps(model)
    config = LoraConfig(r=4, target_modules=maps, exclude_modules=VISION_MODULES, init_lora_weights=False)
    model.add_adapter(config)
    save_adapters(model, folder / "lora", learned_state(model))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_a_merged_folder_stands_alone_and_gives_the_logits_of_base_and_adapters(
    tmp_path, bpe_tokenizer, family
):
    model = with_adapters(tmp_path, bpe_tokenizer, family)
    assert "lm_head" not in linear_maps(model)
    base, merged = str(tmp_path / "language_model"), tmp_path / "merged"
    arguments = ["--model-path", str(tmp_path / "lora"), "--model-base", base]
    merge_lora_weights.main([*arguments, "--save-model-path", str(merged)])
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(merged.glob("adapter*"))
    _, loaded, processor, _ = load_pretrained_model(str(merged))
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    assert processor.crop_size["height"] == 56


def test_adapters_are_not_merged_into_a_model_that_they_were_not_trained_on(tmp_path, bpe_tokenizer):
    with_adapters(tmp_path, bpe_tokenizer, "llama")
    config = tmp_path / "language_model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-5}))
    argv = ["--model-path", str(tmp_path / "lora"), "--model-base", str(tmp_path / "language_model")]
    with pytest.raises(SystemExit, match="rms_norm_eps.*1e-06.*1e-05"):
        merge_lora_weights.main([*argv, "--save-model-path", str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()


def test_a_folder_without_adapters_is_not_merged(tmp_path, bpe_tokenizer):
    with_adapters(tmp_path, bpe_tokenizer, "llama")
    base, merged = str(tmp_path / "language_model"), str(tmp_path / "merged")
    with pytest.raises(SystemExit, match=r"no adapter_config\.json"):
        merge_lora_weights.main(["--model-path", base, "--save-model-path", merged])
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["one file", "shards", "bin", "lora"])
def test_an_extracted_projector_is_the_models(tmp_path, bpe_tokenizer, layout, monkeypatch):
    model = with_adapters(tmp_path, bpe_tokenizer, "llama") if layout == "lora" else tiny.build(tmp_path)
    source = tmp_path / ("lora" if layout == "lora" else "whole")
    if layout == "bin":
        model.config.save_pretrained(source)
        torch.save(model.state_dict(), source / "pytorch_model.bin")
    elif layout != "lora":
        model.save_pretrained(source, max_shard_size="30KB" if layout == "shards" else "5GB")
    if layout == "shards":
        assert len(list(source.glob("*.safetensors"))) > 2
        next(source.glob("model-00001-of-*")).unlink()  # this shard has no weights of the projector
    arguments = ["--model-path", str(source), "--output"]
    extract_mm_projector.main([*arguments, str(tmp_path / "out" / "mm_projector.bin")])
    extract_mm_projector.main([*arguments, str(tmp_path / "folder")])
    expected = model.get_projector().state_dict()
    for file in (tmp_path / "out" / "mm_projector.bin", tmp_path / "folder" / "mm_projector.bin"):
        state = read_projector(file)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mm_projector.bin"]
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    loaded = load_pretrained_model(str(tmp_path / "folder"), str(tmp_path / "language_model"))[1]
    assert torch.equal(loaded.get_projector().mlp[0].weight, expected["mlp.0.weight"])


def test_a_plain_language_model_has_no_projector_to_extract(tmp_path):
    source = tiny.save_language_model(tmp_path / "language_model")
    with pytest.raises(SystemExit, match="--model-path.*projector"):
        extract_mm_projector.main(["--model-path", source, "--output", str(tmp_path / "out")])
