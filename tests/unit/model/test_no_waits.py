"""No step from prompt to loss reads a value from the device, because on a GPU each such read would wait.

The meta device is a stand-in for a GPU: it has no values, so reading one (.item(), .cpu(), nonzero, an index
that is a mask) raises.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import tiny
import torch
from training_batches import batch, moved

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_merge import OnHost
from llava.model.multimodal_projector.builder import PROJECTORS, VisionFields, build_projector


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("waits"))


@pytest.fixture
def without_values(model, monkeypatch):
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda device: False
    )  # autocast does not support the meta device
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())
    return copy.deepcopy(model).to("meta")


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_training_step_reads_nothing_from_the_device(without_values, use_cache):
    without_values.train()
    without_values.config.use_cache = use_cache  # train.py sets it to False
    loss = without_values(**moved(batch(), "meta")).loss
    loss.backward()
    gradient = without_values.get_projector().mlp[0].weight.grad
    assert loss.device.type == gradient.device.type == "meta"


def test_a_training_step_on_shared_prefixes_reads_nothing_from_the_device(without_values):
    inputs = batch()
    sequence_ids = torch.where(inputs["attention_mask"], 0, -1)
    branch_ids = torch.arange(sequence_ids.shape[1]).sub(2).clamp(min=0).expand_as(sequence_ids)
    inputs |= {"sequence_ids": sequence_ids, "branch_ids": branch_ids}
    inputs["on_host"] = replace(inputs["on_host"], sequence_ids=sequence_ids, branch_ids=branch_ids)
    loss = without_values.train()(**moved(inputs, "meta")).loss
    loss.backward()
    assert loss.device.type == "meta"


def test_without_the_copy_on_the_host_it_would(without_values):
    """This shows that the other tests can detect a read."""
    without_values.train()
    inputs = moved(batch(), "meta")
    del inputs["on_host"]
    with pytest.raises(NotImplementedError, match="meta"):
        without_values(**inputs)


def test_prefill_of_ids_on_the_host_reads_nothing_from_the_device(without_values):
    inputs = batch((7, 7))
    images = inputs["images"].to("meta")
    with torch.no_grad():
        logits = without_values(input_ids=inputs["input_ids"], images=images, logits_to_keep=1).logits
        merged = without_values.merge_inputs(
            batch()["input_ids"], batch()["attention_mask"], images=images, padding_side="left"
        )
    assert logits.shape == (2, 1, tiny.VOCABULARY)
    assert merged.inputs_embeds.shape[:2] == merged.attention_mask.shape == (2, 8 + 4)


@pytest.mark.parametrize("name", PROJECTORS)
def test_no_projector_reads_anything_from_the_device(name):
    fields = VisionFields(
        mm_projector_type=name,
        mm_hidden_size=24,
        mm_vision_levels=[0, 1],
        mm_vision_config={"image_size": 56, "patch_size": 14},
        scale_factor=2,
        num_visual_tokens=8,
    )
    shapes = {"selected": (2, 16, 24), "levels": (2, 16, 48), "attention": (2, 16), "keys": (2, 16, 2, 12)}
    features = VisionFeatures(**{part: torch.randn(shape, device="meta") for part, shape in shapes.items()})
    projector = build_projector(fields, 24).to("meta")
    for training in (True, False):
        output = projector.train(training).requires_grad_(training)(features)
        assert output.shape == (2, projector.num_tokens(16), 24)


def test_the_copy_on_the_host_is_what_is_merged(model):
    """The ids of the copy on the device are never read."""
    inputs = batch()
    expected = model.merge_inputs(inputs["input_ids"], inputs["attention_mask"], images=inputs["images"])
    wrong = torch.zeros_like(inputs["input_ids"])
    merged = model.merge_inputs(wrong, images=inputs["images"], on_host=inputs["on_host"])
    assert torch.equal(merged.inputs_embeds, expected.inputs_embeds)
    assert merged.is_padded
    assert not model.merge_inputs(torch.tensor([[5, 6]])).is_padded


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_right_needs_no_mask_in_training(model, attention):
    """Loss and gradients are those of the single rows, weighted by their numbers of labels."""
    trained = copy.deepcopy(model).train()
    trained.config._attn_implementation = attention
    trained.get_projector().eval()  # in training mode, the batches of its batch norms would differ
    inputs = batch()
    parts, gradients = [], []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        trained.zero_grad()
        keep = inputs["attention_mask"][rows].any(dim=0)
        row = {name: inputs[name][rows][:, keep] for name in ("input_ids", "labels", "attention_mask")}
        loss = trained(**row, images=inputs["images"][rows]).loss
        loss.backward()
        parts.append(loss.detach())
        gradients.append(trained.get_decoder().layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(parts[0], (parts[1] + parts[2]) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0], (gradients[1] + gradients[2]) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("attention", "goes_without"),
    [
        ("sdpa", True),
        ("eager", True),
        ("flash_attention_2", False),
        ("flash_attention_3", False),
        ("kernels-community/vllm-flash-attn3", False),
    ],
)
def test_flash_attention_keeps_the_mask_for_it_skips_what_is_masked(model, attention, goes_without):
    trained = copy.deepcopy(model).train()
    trained.config._attn_implementation = attention
    assert trained._padding_is_unseen("right") == goes_without
    assert not trained._padding_is_unseen("left")


def test_what_moves_batches_leaves_the_host_copy():
    from accelerate.utils import send_to_device

    host = batch()["on_host"]
    sent = send_to_device({"input_ids": host.input_ids, "on_host": host}, torch.device("meta"))
    assert sent["on_host"] is host
    assert isinstance(host, OnHost)
    assert sent["input_ids"].device.type == "meta"
