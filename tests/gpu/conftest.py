"""The device of the GPU tests, and when they are skipped.

`bash scripts/test.sh -m gpu` runs them on the first CUDA GPU that this process may use. If there is none,
each is skipped with a message. They use random models of a few thousand weights, and need no network.

  LLAVA_GPU_TESTS_DEVICE   the device to run on, cuda by default. With `cpu`, the code of the tests is tried
                           on a machine without a GPU. Tests of CUDA's own features, for example graphs,
                           memory counts and the search for waits, are then skipped.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

VARIABLE = "LLAVA_GPU_TESTS_DEVICE"
FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    """Mark this folder's tests `gpu`, before `-m` uses the mark, and skip them if there is no GPU."""
    asks_for_cuda = os.environ.get(VARIABLE, "cuda").startswith("cuda")
    no_gpu = asks_for_cuda and not torch.cuda.is_available()
    skip = pytest.mark.skip(reason=f"there is no CUDA GPU here ({VARIABLE}=cpu tries the tests without one)")
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if no_gpu:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of the tested models."""
    return torch.device(os.environ.get(VARIABLE, "cuda"))


@pytest.fixture(scope="session")
def cuda(device) -> torch.device:
    """The device, for tests of features that only CUDA has."""
    if device.type != "cuda":
        pytest.skip(f"only CUDA has what is tested here, and {VARIABLE} is {device}")
    return device


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Switch TF32 off, which cuDNN's convolutions use by default."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def fresh_random_numbers() -> int:
    """Use other random numbers in each run. The seed is printed, and pytest shows it with a failure."""
    seed = random.SystemRandom().randrange(2**31)
    torch.manual_seed(seed)
    print(f"torch.manual_seed({seed})")
    return seed
