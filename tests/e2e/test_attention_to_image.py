"""Attention to images on every backbone: it is the same during generation and when it is computed later."""

import pytest
import tiny
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.visualization.attention import attention_to_image, over_heads, visual_columns
from llava.visualization.capture import capture_attention
from llava.visualization.token_map import token_map

PROMPT = [7, 8, IMAGE_TOKEN_INDEX, 9, 10, IMAGE_TOKEN_INDEX, 11, 12]
SIZES = [(90, 60), (60, 90)]
LAYERS = [0, 1]


def loud(folder, family):
    """A model whose answers depend on words and images, and two images."""
    model = tiny.build(folder, family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter.mul_(8)
    model.generation_config.eos_token_id = None
    return model, torch.randn(2, 3, 56, 56)


@pytest.mark.parametrize("scale_factor", [2, 4])
@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_captured_read_and_reported_attention_are_the_same(tmp_path, family, scale_factor):
    model, images = loud(tmp_path, family)
    prompt = torch.tensor([PROMPT])
    run = {"images": images, "image_sizes": SIZES, "scale_factor": scale_factor}
    plain = model.generate(prompt, **run, max_new_tokens=4, do_sample=False)
    with capture_attention(model, LAYERS, over_heads(model, None)) as captured:
        answer = model.generate(prompt, **run, max_new_tokens=4, do_sample=False)
    assert torch.equal(answer, plain)
    sequence = torch.cat([prompt, answer], dim=1)
    read = attention_to_image(model, sequence, 4, images, SIZES, LAYERS, scale_factor=scale_factor)
    tokens = 2 * (4 // scale_factor) ** 2
    assert read.shape == (2, 4, tokens)

    merged = model.merge_inputs(sequence, **run)
    columns = visual_columns(merged)
    seen = torch.stack([torch.cat([row[:, columns] for row in captured[layer]]) for layer in LAYERS])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        reported = model(inputs_embeds=merged.inputs_embeds, output_attentions=True).attentions
    whole = torch.stack([reported[layer][0].mean(dim=0)[-5:-1, columns] for layer in LAYERS])
    torch.testing.assert_close(read, whole, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(seen, whole, rtol=1e-3, atol=1e-6)
    assert whole.std(dim=-1).max() > 1e-4


def test_an_answer_given_earlier_is_read_from_the_conversation_up_to_it(tmp_path):
    model, images = loud(tmp_path, "llama")
    earlier, later = [20, 21, 22], [13, 30, 31]
    whole = torch.tensor([PROMPT + earlier + later])
    up_to = attention_to_image(model, whole[:, : -len(later)], 3, images, SIZES, LAYERS)
    everything = attention_to_image(model, whole, 6, images, SIZES, LAYERS)
    torch.testing.assert_close(up_to, everything[:, :3])


@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_other_methods_weigh_the_same_tokens(tmp_path, method):
    model, images = loud(tmp_path, "qwen2")
    sequence = torch.tensor([[*PROMPT, 20, 21, 22]])
    before = model.config._attn_implementation
    weights = attention_to_image(model, sequence, 3, images, SIZES, [0, 1], method=method)
    assert weights.shape == (2, 3, 8)
    assert (weights >= 0).all()
    assert model.config._attn_implementation == before
    assert not weights.requires_grad
    changed = images.clone()
    changed[1] *= -1
    other = attention_to_image(model, sequence, 3, changed, SIZES, [0, 1], method=method)
    assert not torch.allclose(weights, other)


@pytest.mark.parametrize("layout", ["square", "slice", "anyres"])
def test_images_follow_one_another_with_as_many_tokens_as_their_maps(tmp_path, layout):
    folder = tiny.save_llava(tmp_path / "model", image_aspect_ratio=layout)
    _, model, image_processor, _ = load_pretrained_model(str(folder))
    maps = [token_map(model, size, image_processor, scale_factor=3) for size in SIZES]
    images = [torch.randn(model.tiling.num_tiles(size), 3, 48, 48) for size in SIZES]
    sequence = torch.tensor([[*PROMPT, 20, 21]])
    weights = attention_to_image(model, sequence, 2, images, SIZES, [0], scale_factor=3)
    assert weights.shape == (1, 2, sum(len(mapping.order) for mapping in maps))
    assert all(mapping.grid == 2 for mapping in maps)
