"""Towers give transformers' own hidden states at any size, and run no layer that is not needed."""

import pytest
import tiny
import torch

from llava.model.multimodal_encoder.builder import (
    VISION_TOWERS,
    build_vision_tower,
    load_vision_weights,
    read_vision_config,
)
from llava.model.multimodal_projector.builder import VisionFields
from llava.model.vision_config import default_levels, resolve_levels

MAX_DIFFERENCE = 1e-5


def build(folder, family, needs_levels=True, **fields):
    name = tiny.save_tower(folder, family)
    tower = build_vision_tower(VisionFields(mm_vision_tower=name, **fields), needs_levels).eval()
    load_vision_weights(tower, name)
    return tower


def own_hidden_states(tower, pixels):
    """transformers' hidden states with prefix tokens; index 0 is the embedding output."""
    model = tower.vision_tower
    if type(model).__name__ == "Siglip2VisionModel":
        side = pixels.shape[-1] // 14
        patches = pixels.reshape(pixels.shape[0], 3, side, 14, side, 14).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.full((pixels.shape[0], 2), side)
        mask = torch.ones(pixels.shape[0], side * side, dtype=torch.long)
        return model(patches.flatten(3).flatten(1, 2), mask, shapes, output_hidden_states=True).hidden_states
    options = {} if type(model).__name__ == "Dinov2Model" else {"interpolate_pos_encoding": True}
    return model(pixels, output_hidden_states=True, **options).hidden_states


@pytest.mark.parametrize("image_size", [56, 84])
@pytest.mark.parametrize("family", tiny.TOWERS)
def test_levels_are_transformers_hidden_states(tmp_path, family, image_size):
    tower = build(tmp_path, family, mm_vision_image_size=image_size)
    pixels = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        selected, levels = tower(pixels)[:2]
        states = [state[:, tower.num_prefix_tokens :] for state in own_hidden_states(tower, pixels)]
    torch.testing.assert_close(selected, states[-2], atol=MAX_DIFFERENCE, rtol=0)
    expected = torch.cat([states[i] for i in (2, 3, 4, 5)], dim=-1)
    torch.testing.assert_close(levels, expected, atol=MAX_DIFFERENCE, rtol=0)
    assert tower.num_patches == tower.grid_side**2 == selected.shape[1]


def test_the_layers_beyond_the_deepest_one_asked_for_are_not_run(tmp_path):
    tower = build(tmp_path, "clip", mm_vision_select_layer=3, needs_levels=False)
    ran = []
    for index, layer in enumerate(tower.layers, start=1):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    features = tower(torch.randn(1, 3, 56, 56))
    assert ran == [1, 2, 3]
    assert features.levels is None


def test_cls_patch_keeps_the_class_token(tmp_path):
    tower = build(tmp_path, "clip", needs_levels=False, mm_vision_select_feature="cls_patch")
    assert tower(torch.randn(1, 3, 56, 56)).selected.shape[1] == tower.num_patches == 17


def test_half_of_a_text_and_image_model_is_enough_of_a_configuration(tmp_path):
    from transformers import CLIPConfig

    CLIPConfig().save_pretrained(tmp_path)
    assert read_vision_config(str(tmp_path))["model_type"] == "clip_vision_model"


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (24, [12, 16, 22, 23]),
        (12, [6, 8, 10, 11]),
        (27, [14, 18, 25, 26]),
        (6, [2, 3, 4, 5]),
        (4, [0, 1, 2, 3]),
    ],
)
def test_default_levels_scale_with_depth(depth, expected):
    levels = default_levels(depth, selected=depth - 1)
    assert levels == expected


def test_levels_given_are_taken_and_checked():
    assert resolve_levels([1, -2], depth=6, select_layer=-2) == [1, 5]
    with pytest.raises(ValueError, match="--mm_vision_levels.*increasing"):
        resolve_levels([3, 3], depth=6, select_layer=-2)
    with pytest.raises(ValueError, match="-7 to 6"):
        resolve_levels([9], depth=6, select_layer=-2)
    with pytest.raises(ValueError, match="--mm_vision_levels"):
        default_levels(3, selected=2)


def test_wrong_pixels_sizes_and_families_are_refused_by_name(tmp_path):
    tower = build(tmp_path, "clip")
    with pytest.raises(ValueError, match="56x56.*28x28"):
        tower(torch.randn(1, 3, 28, 28))
    with pytest.raises(ValueError, match="14-px.*60.*56"):
        build_vision_tower(VisionFields(mm_vision_tower=str(tmp_path), mm_vision_image_size=60), True)
    with pytest.raises(ValueError, match=r"'resnet'.*" + ", ".join(VISION_TOWERS)):
        build_vision_tower(VisionFields(mm_vision_config={"model_type": "resnet"}), True)
    with pytest.raises(ValueError, match="no readable config.json"):
        read_vision_config(str(tmp_path / "nothing"))
