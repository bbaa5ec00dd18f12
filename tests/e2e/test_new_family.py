"""A vision tower and a language model, each added by a few lines, as CONTRIBUTING.md says."""

import exports
import pytest
import tiny
import torch
from modes import load, logits, run
from torch import Tensor, nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    AutoConfig,
    AutoModelForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo2Model,
)

from llava.export.folder import export
from llava.model.language_model.builder import MODEL_CLASSES
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.multimodal_encoder.builder import VISION_TOWERS
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.builder import VisionFields


class Aimv2VisionTower(VisionTower):
    config_class = Aimv2VisionConfig
    model_class = Aimv2VisionModel

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.vision_tower.embeddings(pixel_values)

    def attention_parts(self, layer: nn.Module) -> tuple[nn.Module, nn.Linear, nn.Linear]:
        return layer.rms_norm1, layer.attention.q_proj, layer.attention.k_proj


class LlavaOlmo2Config(VisionFields, Olmo2Config):
    model_type = "llava_olmo2"


class LlavaOlmo2Model(LlavaMetaModel, Olmo2Model):
    config_class = LlavaOlmo2Config


class LlavaOlmo2ForCausalLM(LlavaMetaForCausalLM, Olmo2ForCausalLM):
    config_class = LlavaOlmo2Config
    decoder_class = LlavaOlmo2Model


@pytest.fixture
def tower(monkeypatch, tmp_path):
    monkeypatch.setitem(VISION_TOWERS, "aimv2_vision_model", Aimv2VisionTower)
    sizes = {
        **tiny.TRANSFORMER,
        "num_hidden_layers": 6,
        "image_size": 56,
        "patch_size": 14,
        "use_head": False,
    }
    Aimv2VisionModel(Aimv2VisionConfig(**sizes)).save_pretrained(tmp_path / "aimv2")
    tiny.image_processor().save_pretrained(tmp_path / "aimv2")
    return tmp_path / "aimv2"


@pytest.fixture
def language_model(monkeypatch, tmp_path, bpe_tokenizer):
    for model_type in ("olmo2", "llava_olmo2"):  # what an entry in FAMILIES leads to
        monkeypatch.setitem(MODEL_CLASSES, model_type, LlavaOlmo2ForCausalLM)
    AutoConfig.register("llava_olmo2", LlavaOlmo2Config, exist_ok=True)
    AutoModelForCausalLM.register(LlavaOlmo2Config, LlavaOlmo2ForCausalLM, exist_ok=True)
    Olmo2ForCausalLM(Olmo2Config(**tiny.DECODER)).save_pretrained(tmp_path / "olmo2")
    bpe_tokenizer.save_pretrained(tmp_path / "olmo2")
    return tmp_path / "olmo2"


def test_both_train_load_go_on_and_are_exported(parts, tower, language_model, tmp_path):
    own = {"mm_projector_type": "visionzip", "num_visual_tokens": 4}  # it reads the tower's attention
    model = run(parts, tmp_path / "run", model_name_or_path=language_model, vision_tower=tower, **own)
    assert isinstance(model, LlavaOlmo2ForCausalLM)
    assert isinstance(model.get_vision_tower(), Aimv2VisionTower)
    torch.testing.assert_close(logits(load(tmp_path / "run")), logits(model))
    more = {"model_name_or_path": tmp_path / "run", "mm_projector_type": None, "vision_tower": None}
    run(parts, tmp_path / "more", **more)
    export(str(tmp_path / "more"), tmp_path / "exported")
    ours, theirs = exports.Ours(tmp_path / "more"), exports.Theirs(tmp_path / "exported")
    exports.assert_same_logits(ours, theirs, [[("What is it?", 1, None)]], exports.pictures(1))
