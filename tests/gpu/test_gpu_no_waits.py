"""No step of the forward and backward pass waits for the GPU: PyTorch raises an error at each wait.

tests/unit/model/test_no_waits.py tests the same on the meta device, which has no values, but also no
transfers.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tiny
import torch
from lineup import CASES, make, make_features
from training_batches import batch, moved

from llava.constants import IMAGE_TOKEN_INDEX


@contextmanager
def no_waits():
    """Within the block, each wait for the GPU raises an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def model(cuda, tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("waits")).to(cuda)


def test_the_search_finds_a_wait(cuda):
    with no_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(2, device=cuda).sum().item()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_training_step_does_not_wait(cuda, model, autocast, use_cache, monkeypatch):
    """Forward and backward pass with padded rows, after a step in which libraries allocate workspaces."""
    monkeypatch.setattr(model.config, "use_cache", use_cache)  # train.py sets it to False
    model.train()
    for waits_are_errors in (False, True):
        inputs = moved(batch(), cuda)
        model.zero_grad()
        with no_waits() if waits_are_errors else torch.enable_grad():
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = model(**inputs).loss
            loss.backward()
    model.eval()
    assert loss.isfinite()
    assert model.get_projector().mlp[0].weight.grad.abs().max() > 0


def test_a_batch_of_text_alone_does_not_wait(cuda, model):
    model.train()
    for waits_are_errors in (False, True):
        inputs = moved(batch(), cuda)
        del inputs["images"]
        host = inputs["on_host"]
        host.input_ids[host.input_ids == IMAGE_TOKEN_INDEX] = 5
        with no_waits() if waits_are_errors else torch.enable_grad():
            loss = model(**inputs).loss
            loss.backward()
    model.eval()
    assert loss.isfinite()


def test_prefill_of_ids_on_the_host_does_not_wait(cuda, model):
    inputs = moved(batch((7, 7)), cuda)
    ids = inputs["on_host"].input_ids
    with torch.no_grad():
        model(input_ids=ids, images=inputs["images"], logits_to_keep=1)
        with no_waits():
            logits = model(input_ids=ids, images=inputs["images"], logits_to_keep=1).logits
    assert logits.shape == (2, 1, tiny.VOCABULARY)
    assert logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "scale_factor"), CASES)
def test_a_projector_does_not_wait(cuda, name, scale_factor, training):
    """In training, with the backward pass."""
    module = make(name, scale_factor).to(cuda).train(training)
    features = make_features(name)
    features = type(features)(*(part.to(cuda) for part in features))
    features.selected.requires_grad_()
    with torch.set_grad_enabled(training):
        for waits_are_errors in (False, True):
            with no_waits() if waits_are_errors else torch.set_grad_enabled(training):
                output = module(features)
                if training:
                    output.sum().backward()
    assert output.isfinite().all()
