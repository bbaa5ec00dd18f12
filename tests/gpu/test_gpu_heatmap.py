"""The attention of an answer, computed on the device, equals that on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from measures import assert_near
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.visualization.answer import image_attention
from llava.visualization.attention import METHODS, attention_to_image

PROMPT, ANSWER = [7, 8, IMAGE_TOKEN_INDEX, 9, 10, 11], [20, 21, 22]
LAYERS = [0, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("heatmap") / "model")


def load(folder, device, dtype=torch.float32):
    return load_pretrained_model(str(folder), device=str(device), torch_dtype=dtype)[:3]


def photograph():
    return Image.fromarray(np.random.default_rng().integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("method", METHODS)
def test_a_heatmap_is_the_cpus(device, folder, method):
    """The answer is the same, and so are the weights of each token in two layers, in float32."""
    image, results = photograph(), []
    for place in ("cpu", device):
        tokenizer, model, processor = load(folder, place)
        options = {"layers": LAYERS, "max_new_tokens": 6, "method": method}
        results.append(image_attention(model, tokenizer, processor, image, "what?", **options))
    expected, found = results
    assert found.answer == expected.answer
    assert found.words == expected.words
    assert found.weights.dtype == np.float32
    for one, other in zip(found.weights, expected.weights, strict=True):
        assert_near(torch.from_numpy(one), torch.from_numpy(other), 1e-3, "a layer's weights")


# Attention is compared in half precision. Relevance is not, because it multiplies the gradients of all
# layers
@pytest.mark.parametrize("method", ["attention", "rollout"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-2), (torch.bfloat16, 1.5e-1)])
def test_weights_in_half_precision_are_near_float32s(device, tmp_path, dtype, bound, method):
    """The answer is given, and the model has small weights, so that rounding changes its attention little."""
    folder = tiny.save_llava(tmp_path / "model", initializer_range=0.02)
    found = {}
    for place, kind in (("cpu", torch.float32), (device, dtype)):
        _, model, processor = load(folder, place, kind)
        images = process_images([photograph_of_one_seed()], processor, model.config)
        images = [pixels.to(place, kind) for pixels in images]
        ids = torch.tensor([PROMPT + ANSWER], device=place)
        found[kind] = attention_to_image(model, ids, len(ANSWER), images, [(90, 60)], LAYERS, method=method)
    assert found[dtype].dtype == torch.float32
    assert found[dtype].device.type == "cpu"
    assert_near(found[dtype], found[torch.float32], bound, "the weights")


def photograph_of_one_seed():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_relevance_in_half_precision_is_finite(device, folder):
    tokenizer, model, processor = load(folder, device, torch.bfloat16)
    options = {"layers": [-1], "max_new_tokens": 4, "method": "relevance"}
    result = image_attention(model, tokenizer, processor, photograph(), "what?", **options)
    assert np.isfinite(result.weights).all()
