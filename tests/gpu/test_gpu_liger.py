"""A training step with Liger's kernels equals a step without them: loss and gradients of each family."""

import copy
import importlib

import pytest
import tiny
import torch
from measures import assert_near

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.liger import apply_liger_kernels

MODULES = {  # modules that Liger changes for the whole process
    "llama": ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb"),
    "mistral": ("MistralRMSNorm", "MistralMLP", "apply_rotary_pos_emb"),
    "qwen2": ("Qwen2RMSNorm", "Qwen2MLP", "apply_rotary_pos_emb"),
    "qwen3": ("Qwen3RMSNorm", "Qwen3MLP", "apply_rotary_pos_emb"),
}
MAX_ERROR = 1e-4  # both are in float32, but the kernels sum in another order


def step(model, cuda) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the loss, and the gradient of each weight of the language model."""
    ids = torch.arange(5, 29).view(2, 12)
    ids[:, 1] = IMAGE_TOKEN_INDEX
    labels = torch.where(torch.arange(12) < 6, IGNORE_INDEX, ids)
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)).to(cuda)
    loss = model(input_ids=ids, labels=labels, images=images, use_cache=False).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {
        name: g for name, g in gradients.items() if ".layers." in name and "vision" not in name
    }


@pytest.mark.parametrize("family", MODULES)
def test_a_step_is_the_same(family, cuda, tmp_path, monkeypatch):
    pytest.importorskip("liger_kernel")
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    for name in MODULES[family]:
        monkeypatch.setattr(modeling, name, getattr(modeling, name))  # it is restored when the test ends
    plain = tiny.build(tmp_path, family).to(cuda)
    plain.get_projector().requires_grad_(True)
    fused = copy.deepcopy(plain)
    loss, gradients = step(plain, cuda)
    # two norms in each of two layers, one after them, and two MLPs; Qwen3 also normalises queries and keys
    assert apply_liger_kernels(fused) >= 2 * 3 + 1
    fused_loss, fused_gradients = step(fused, cuda)
    assert_near(fused_loss, loss, MAX_ERROR, "the loss")
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_near(fused_gradients[name], gradient, MAX_ERROR, name)
