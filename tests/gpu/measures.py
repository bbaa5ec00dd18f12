"""The distance of a result from its reference, for all GPU tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_error(found: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """‖found - expected‖ / ‖expected‖ in float64 on the CPU.

    It is infinite if a value of either is not finite, so a NaN is above every bound.

    Args:
        scale: the divisor, instead of ‖expected‖.
    """
    assert found.shape == expected.shape, (found.shape, expected.shape)
    found, expected = (tensor.detach().to("cpu", torch.float64) for tensor in (found, expected))
    if not (found.isfinite().all() and expected.isfinite().all()):
        return math.inf
    distance = (found - expected).norm().item()
    scale = expected.norm().item() if scale is None else scale
    return distance / scale if scale else math.inf * distance if distance else 0.0


def assert_near(found: Tensor, expected: Tensor, bound: float, what: str = "", scale: float | None = None):
    error = relative_error(found, expected, scale)
    assert error <= bound, f"{what} is {error:.2e} from its reference, and {bound:.0e} is allowed"
