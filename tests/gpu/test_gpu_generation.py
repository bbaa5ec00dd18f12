"""Answers on the device: batches equal single prompts, and both kinds of attention agree."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from measures import assert_near

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE = IMAGE_TOKEN_INDEX
PROMPTS = [[1, 5, IMAGE, 7, 8, 9, 10, 11], [1, IMAGE, 6], [1, 2, 3, 4], [9, IMAGE, 8, 7, IMAGE, 5]]
IMAGES_OF = [slice(0, 1), slice(1, 2), slice(0, 0), slice(2, 4)]


def padded(padding_side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (ids long[B, T], mask bool[B, T])."""
    pad = {"batch_first": True, "padding_side": padding_side}
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in PROMPTS], **pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in PROMPTS], **pad)
    return ids, mask.bool()


@pytest.fixture(scope="module")
def loud_model(device, tmp_path_factory):
    """A model whose answers depend on images: visual tokens have norms like those of words."""
    folder = tiny.save_llava(tmp_path_factory.mktemp("llava") / "model")
    from llava.model.builder import load_pretrained_model

    return load_pretrained_model(str(folder), device=str(device), torch_dtype=torch.float32)[1]


@torch.inference_mode()
@pytest.mark.parametrize("ids_on_host", [True, False], ids=["ids on the host", "ids on the device"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batched_answers_are_those_of_each_prompt_alone(device, loud_model, padding_side, ids_on_host):
    """In float32, with no, one and two images, and with padding on either side."""
    place = torch.device("cpu") if ids_on_host else device
    side = tiny.LLAVA_SIZE
    images = torch.randn(4, 3, side, side, device=device)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids, mask = padded(padding_side)
    together = loud_model.generate(ids.to(place), images=images, attention_mask=mask.to(place), **options)
    alone = [
        loud_model.generate(torch.tensor([row], device=place), images=images[own], **options)
        for row, own in zip(PROMPTS, IMAGES_OF, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert together.unique(dim=0).shape[0] > 1
    assert together.device.type == device.type


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "qwen3", "mpt"])
def test_every_family_answers_a_batch_as_one_by_one(device, tmp_path, family):
    model = tiny.build(tmp_path, family).to(device)
    images = torch.randn(4, 3, 56, 56, device=device)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids, mask = padded("left")
    together = model.generate(ids, images=images, attention_mask=mask, **options)
    alone = [
        model.generate(torch.tensor([row]), images=images[own], **options)
        for row, own in zip(PROMPTS, IMAGES_OF, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("tower", ["clip", "siglip", "siglip2", "dinov2"])
def test_sdpa_and_eager_attention_give_the_same_logits(device, tmp_path, tower, padding_side):
    """Tower and language model are compared in a padded batch, without positions of padding."""
    model = tiny.build(tmp_path, tower=tower).to(device)
    model.config.tokenizer_padding_side = padding_side
    ids, mask = padded(padding_side)
    images = torch.randn(4, 3, 56, 56, device=device)
    inputs = {"input_ids": ids, "attention_mask": mask, "images": images}
    seen = model.merge_inputs(ids, mask, images=images, padding_side=padding_side).attention_mask
    found = {}
    for name in ("sdpa", "eager"):
        model.config._attn_implementation = name
        model.get_vision_tower().vision_tower.config._attn_implementation = name
        with torch.no_grad():
            found[name] = model(**inputs).logits[seen]
    assert_near(found["sdpa"], found["eager"], 1e-5, "the logits of sdpa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sdpa_and_eager_attention_give_the_same_training_step(device, tmp_path, dtype):
    """With bfloat16 autocast: the loss, and gradients of the decoder's first layer and of the projector."""
    model = tiny.build(tmp_path).to(device)
    ids, mask = padded("right")
    labels = ids.clone()
    labels[(ids == IMAGE) | ~mask] = IGNORE_INDEX
    images = torch.randn(4, 3, 56, 56, device=device)
    losses, grads = [], []
    for name in ("sdpa", "eager"):
        trained = copy.deepcopy(model).train()
        trained.config._attn_implementation = name
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = trained(input_ids=ids, attention_mask=mask, labels=labels, images=images).loss
        loss.backward()
        losses.append(loss)
        named = dict(trained.named_parameters())
        parts = ("layers.0.self_attn.v_proj", "layers.0.mlp.up_proj", "mm_projector.mlp.0")
        grads.append([named[f"model.{part}.weight"].grad for part in parts])
    bound = 1e-4 if dtype == torch.float32 else 1e-1  # eight bits of mantissa, about twenty layers
    assert_near(*losses, bound, "the loss")
    for one, other in zip(*grads, strict=True):
        assert_near(one, other, bound, "a gradient")
