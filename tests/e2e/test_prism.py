"""The parts of VisualPrism: their values, and the pixels to which they belong; others are refused."""

import numpy as np
import pytest
import tiny
import torch
from messages import assert_names
from PIL import Image

from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.visualization.plots_prism import prism_figure
from llava.visualization.prism import main, prism_view
from llava.visualization.prism_view import whole_view

TILED = [
    {"image_aspect_ratio": "slice"},
    {"image_aspect_ratio": "anyres"},
    {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
]


def photograph(width=90, height=60):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("prism") / "model")


def load(folder):
    _, model, image_processor, _ = load_pretrained_model(str(folder))
    return model, image_processor


def test_the_parts_rebuild_what_the_projector_gives(folder):
    model, image_processor = load(folder)
    projector, tower = model.get_projector(), model.get_vision_tower()
    features = tower(process_images([photograph()], image_processor, model.config))
    parts = projector.inspect(features, [2, 3])
    assert parts.subband_energy.sum() == pytest.approx(features.selected.square().sum().item(), rel=1e-4)
    assert parts.fusion.sum() == pytest.approx(1)
    for s, weights in parts.region_attention.items():
        assert weights.shape == (1, 6 // s, 6 // s, projector.clip_attn.num_heads, s, s)
        torch.testing.assert_close(weights.sum(dim=(-1, -2)), torch.ones_like(weights[..., 0, 0]))
        _, value = projector.keys_and_values(features.levels)
        gathered = projector.clip_attn.gather(weights.reshape(-1, weights.shape[3], s * s), value, s)
        tokens = projector.mlp(projector.clip_attn.out_proj(gathered))[None]
        expected = model.encode_images(process_images([photograph()], image_processor, model.config), s)
        torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    identity = projector.q_identity_proj(features.selected).norm(dim=-1)
    torch.testing.assert_close(parts.path_norms[:, 0].flatten(1), identity)


def test_looking_changes_nothing(folder):
    model, image_processor = load(folder)
    before = {name: value.clone() for name, value in model.get_projector().state_dict().items()}
    prism_view(model, image_processor, photograph())
    for name, value in model.get_projector().state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("s", [2, 3])
@pytest.mark.parametrize("patch", [(0, 0), (1, 4), (5, 5)])
def test_a_patch_whose_key_matches_every_query_lights_its_own_pixels(folder, s, patch):
    model, image_processor = load(folder)
    projector = model.get_projector()
    width = projector.ln_k_1.weight.shape[0]
    key = torch.zeros(1, 36, width)
    key[0, 6 * patch[0] + patch[1]] = 100
    projector.keys_and_values = lambda x_multi: (key, key)
    with torch.no_grad():
        projector.clip_attn.in_proj_weight[:width] = 0
        projector.clip_attn.in_proj_bias[:width] = 1
        projector.clip_attn.in_proj_weight[width : 2 * width] = torch.eye(width)
    taken = prism_view(model, image_processor, photograph(), [s]).taken(s)
    row, column = patch[0] // s * s, patch[1] // s * s
    assert taken[patch] == pytest.approx(s * s, abs=1e-3)
    assert np.count_nonzero(taken[row : row + s, column : column + s] > 1e-3) == 1
    taken[row : row + s, column : column + s] = 1
    np.testing.assert_allclose(
        taken, 1, atol=1e-4
    )  # in regions without a match, all patches have equal weight


def test_high_bands_light_where_the_features_change(folder):
    model, _ = load(folder)
    flat = torch.ones(1, 16, 6, 6)
    flat[..., 2, 3] = -1
    features = model.get_vision_tower()(torch.zeros(1, 3, 48, 48))
    features = features._replace(selected=flat.flatten(2).transpose(1, 2))
    energy = model.get_projector().inspect(features, [2]).subband_energy[0]
    for band in energy[1:]:
        assert torch.nonzero(band > 1e-6).tolist() == [[1, 1]]
    assert torch.nonzero(energy[0] > 1e-6).shape == (9, 2)


@pytest.mark.parametrize("settings", TILED, ids=lambda settings: "-".join(settings.values()))
@pytest.mark.parametrize("size", [(40, 30), (180, 60)])
def test_the_view_of_a_tiled_image_shows_the_whole_image(tmp_path, settings, size):
    model, image_processor = load(tiny.save_llava(tmp_path / "model", **settings))
    image_processor.image_mean, image_processor.image_std = [0.0] * 3, [1.0] * 3
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 3, 0], pixels[:, size[0] // 3 :, 1] = 255, 255
    view = whole_view(model, image_processor, Image.fromarray(pixels))
    assert view.shape == (1, 3, 48, 48)
    red, green, _ = view[0].mean(dim=(1, 2)).tolist()
    assert 0.3 < red / green < 0.7  # a third is red and the rest is green, and both are kept


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"visualprism_paths": "identity,local"},
        {"visualprism_tpqp": False},
        {"visualprism_wavelet": "db2"},
        {"mm_projector_type": "visualprism_v2"},
    ],
    ids=["published", "no wavelet", "no TPQP", "db2", "v2"],
)
def test_every_form_of_visualprism_is_drawn(tmp_path, settings):
    folder = tiny.save_llava(tmp_path / "model", **settings)
    photograph().save(tmp_path / "photo.png")
    argv = ["--model_path", str(folder), "--image_path", str(tmp_path / "photo.png")]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    names = ["prism.npz", "prism.png", "prism.svg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    arrays = np.load(tmp_path / "out" / "prism.npz")
    assert arrays["region_attention_s3"].shape == (2, 2, 1, 3, 3)
    assert arrays["path_norms"].shape == (len(arrays["paths"]), 6, 6)
    assert len(arrays["subband_energy"]) == (4 if "wavelet" in arrays["paths"] else 0)


def test_an_odd_grid_is_drawn(tmp_path):
    tower = tiny.clip(hidden_size=16, intermediate_size=32, image_size=40, patch_size=8).config.to_dict()
    folder = tiny.save_llava(tmp_path / "model", mm_vision_config=tower, scale_factor=5)
    model, _ = load(folder)
    result = prism_view(model, tiny.image_processor(40), photograph())
    assert list(result.region_attention) == [5]
    assert result.subband_energy.shape == (4, 3, 3)
    prism_figure(result)


@pytest.mark.parametrize(
    ("settings", "flags", "parts"),
    [
        (
            {"mm_projector_type": "tokenpacker"},
            [],
            ("TokenPacker", "--model_path"),
        ),
        ({}, ["--scale_factors", "2,4"], ("--scale_factor", "6x6", "4")),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, capsys, settings, flags, parts):
    folder = tiny.save_llava(tmp_path / "model", **settings)
    photograph().save(tmp_path / "photo.png")
    argv = ["--model_path", str(folder), "--image_path", str(tmp_path / "photo.png"), *flags]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 1
    assert_names(capsys.readouterr().err, *parts)
    assert not (tmp_path / "out").exists()
