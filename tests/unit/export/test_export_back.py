"""--target llava: an exported folder becomes the folder that it was exported from."""

import copy
import json

import exports
import pytest
import torch
from safetensors.torch import load_file

from llava.errors import UserError
from llava.export.back import restore
from llava.export.folder import export

pytestmark = pytest.mark.slow

CHATS = [[("What is it?", 1, None)], [("Which of the two?", 2, "The second."), ("Why?", 0, None)]]
MODELS = {
    "Llava": {"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"},
    "LlavaNext": {
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
    },
    "VisualPrism": {"mm_projector_type": "visualprism", "image_aspect_ratio": "slice"},
}


def assert_equal_folders(restored, ours):
    weights, expected = (load_file(folder / "model.safetensors") for folder in (restored, ours))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert weights[name].dtype is value.dtype
        assert torch.equal(weights[name], value), name
    assert (restored / "config.json").read_bytes() == (ours / "config.json").read_bytes()


@pytest.mark.transformers
@pytest.mark.parametrize("kind", MODELS)
def test_restored_weights_and_settings_are_bit_for_bit_those_exported(tmp_path, bpe_tokenizer, kind):
    ours = exports.save_whole(tmp_path / "ours", copy.deepcopy(bpe_tokenizer), **MODELS[kind])
    export(str(ours), tmp_path / "theirs")
    restore(str(tmp_path / "theirs"), tmp_path / "restored")
    assert_equal_folders(tmp_path / "restored", ours)
    before, after = (exports.Ours(folder) for folder in (ours, tmp_path / "restored"))
    assert "<image>" not in after.tokenizer.get_vocab()
    images = exports.pictures(3)
    for chat in CHATS:
        assert after.ids(chat) == before.ids(chat)
    for own, expected in zip(after.logits(CHATS, images), before.logits(CHATS, images), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    theirs = exports.Theirs(tmp_path / "theirs")  # as another project's trainer saves it
    theirs.model.save_pretrained(tmp_path / "saved")
    theirs.processor.save_pretrained(tmp_path / "saved")
    restore(str(tmp_path / "saved"), tmp_path / "restored-again")
    assert_equal_folders(tmp_path / "restored-again", ours)


def test_a_folder_that_was_not_exported_is_refused(tmp_path, bpe_tokenizer):
    ours = exports.save_whole(tmp_path / "ours", copy.deepcopy(bpe_tokenizer), **MODELS["Llava"])
    with pytest.raises(UserError, match="an exported folder"):
        restore(str(ours), tmp_path / "restored")
    export(str(ours), tmp_path / "theirs")
    with pytest.raises(UserError, match="--target llava"):
        export(str(tmp_path / "theirs"), tmp_path / "again")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["llava_config"]
