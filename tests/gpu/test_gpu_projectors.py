"""Outputs and gradients of every projector on the device, in every dtype, compared with float64 on the CPU.

The reference has the same weights and inputs, already rounded to the tested dtype, so that only the
arithmetic is measured. Errors are ‖found - expected‖ / ‖expected‖ of a whole tensor.
"""

from __future__ import annotations

import copy

import pytest
import torch
from lineup import CASES, WIDTH, make, make_features
from measures import assert_near
from torch import Tensor, nn

# The relative error of a rounded value is up to 2**-24, 2**-11 or 2**-8. A token passes about ten layers,
# each of which rounds its result. Gradients pass the same layers backwards, where the gain of a norm or the
# weight of a path sums about a hundred thousand rounded products that largely cancel. The same computation
# in these dtypes on the CPU has errors of up to 7e-7, 2e-3 and 2e-2 in its outputs, and 2e-6, 1.3e-2 and
# 6e-2 in nearly all gradients.
OUTPUT_BOUND = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
GRADIENT_BOUND = {torch.float32: 1e-4, torch.float16: 4e-2, torch.bfloat16: 2e-1}
# The CPU's layer norm adds up the gradient of its bias in the dtype itself, a GPU's in float32
GRADIENT_BOUND_ON_CPU = {torch.float32: 1e-4, torch.float16: 1e-1, torch.bfloat16: 6e-1}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# A gradient's error is divided by at least this fraction of the root mean square over all gradients: the one
# of a bias before a norm is zero up to rounding, and that of a norm before keys largely cancels.
SMALLEST_SHARE = 0.2


def run(module: nn.Module, features, cotangent: Tensor | None, device, dtype):
    """The output, and the gradients of its product with `cotangent` for inputs and trained parameters."""
    module = copy.deepcopy(module).to(device, dtype)
    inputs = features.to(dtype)
    inputs = inputs._replace(
        selected=inputs.selected.to(device).requires_grad_(),
        levels=inputs.levels.to(device).requires_grad_(),
        attention=inputs.attention.to(device),
        keys=inputs.keys.to(device),
    )
    output = module(inputs)
    if cotangent is None:
        return output, {}
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wanted |= {"selected": inputs.selected, "levels": inputs.levels}
    grads = torch.autograd.grad(output, wanted.values(), cotangent.to(output), allow_unused=True)
    return output, {name: grad for name, grad in zip(wanted, grads, strict=True) if grad is not None}


def check(name: str, scale_factor: int, device, dtype: torch.dtype, training: bool) -> None:
    module = make(name, scale_factor).to(dtype).train(training).requires_grad_(training)
    features = make_features(name).to(dtype)
    num_tokens = module.num_tokens(features.selected.shape[1])
    cotangent = torch.randn(len(features.selected), num_tokens, WIDTH).to(dtype)
    expected, expected_grads = run(module, features, cotangent, "cpu", torch.float64)
    found, found_grads = run(module, features, cotangent, device, dtype)
    assert found.dtype == dtype
    assert found.device.type == device.type
    assert_near(found, expected, OUTPUT_BOUND[dtype], "the output")
    assert found_grads.keys() == expected_grads.keys()
    assert "selected" in found_grads or name == "identity"
    bounds = GRADIENT_BOUND_ON_CPU if device.type == "cpu" else GRADIENT_BOUND
    sizes = [grad.norm().item() / grad.numel() ** 0.5 for grad in expected_grads.values()]
    typical = (sum(size**2 for size in sizes) / len(sizes)) ** 0.5
    for key, grad in expected_grads.items():
        least = SMALLEST_SHARE * typical * grad.numel() ** 0.5
        scale = max(grad.norm().item(), least)
        assert_near(found_grads[key], grad, bounds[dtype], f"the gradient of {key}", scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "scale_factor"), CASES)
def test_the_training_form_is_float64s_on_the_cpu(device, name, scale_factor, dtype):
    """Forward pass, and gradients of inputs and all parameters; batch norms use the batch's statistics."""
    check(name, scale_factor, device, DTYPES[dtype], training=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "scale_factor"), CASES)
def test_the_evaluation_form_is_float64s_on_the_cpu(device, name, scale_factor, dtype):
    """Frozen and in evaluation mode, in which visualprism is folded; with gradients of the inputs."""
    check(name, scale_factor, device, DTYPES[dtype], training=False)
