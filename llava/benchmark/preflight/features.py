"""Features that a training run may use, each tried by a tiny real step, since an import proves little."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from llava.loading import FLASH_PACKAGES

ROOT = Path(__file__).parents[3]
TOLERANCE = 0.05  # largest error over the result's norm; bfloat16 keeps three digits, four bits far fewer


@dataclass(frozen=True)
class Feature:
    """A feature that may or may not work on this machine.

    Attributes:
        use: the flag or variable that turns the feature on.
        step: takes the device; raises an exception if the feature does not work.
        module: the module that the feature needs; None: it needs none.
        install: how to install the module.
        needs_gpu: whether the feature is of no use on a CPU.
    """

    use: str
    step: Callable[[str], None]
    module: str | None = None
    install: str = ""
    needs_gpu: bool = True


def close(ours: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> None:
    """Raise ArithmeticError if a result differs too much from the result in float32."""
    error = ((ours.float() - right).norm() / right.norm()).item()
    if not error < tolerance:  # also true if it is NaN
        raise ArithmeticError(
            f"its result is wrong: relative error {error:.3g}, expected at most {tolerance}"
        )


def bf16(device: str) -> None:
    left, right = (torch.randn(256, 256, device=device, requires_grad=True) for _ in range(2))
    with torch.autocast(device, torch.bfloat16):
        product = left @ right
    product.sum().backward()
    close(product, left.detach() @ right.detach())
    close(left.grad, torch.ones_like(product).float() @ right.detach().T)


def flash_attention(name: str, device: str) -> None:
    attend = import_module(FLASH_PACKAGES[name][0]).flash_attn_func
    query, key, value = (
        torch.randn(1, 128, 4, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    output = attend(query, key, value, causal=True)
    output = output[0] if isinstance(output, tuple) else output
    output.float().sum().backward()
    heads_first = [x.detach().float().transpose(1, 2) for x in (query, key, value)]
    right = nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
    close(output, right.transpose(1, 2))


def bitsandbytes(device: str) -> None:
    from bitsandbytes.nn import Linear4bit

    plain = nn.Linear(128, 128, bias=False)
    quantised = Linear4bit(128, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    quantised.load_state_dict(plain.state_dict())
    inputs = torch.randn(16, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    output = quantised.to(device)(inputs)
    output.float().sum().backward()
    close(output, inputs.detach().float() @ plain.weight.detach().T.to(device), tolerance=0.2)
    if not inputs.grad.isfinite().all():
        raise ArithmeticError("its gradient is not finite")


def deepspeed(device: str) -> None:
    """Do a step of ZeRO-2 by scripts/zero2.json in one process."""
    from deepspeed import init_distributed, initialize

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    init_distributed(dist_backend="nccl" if device == "cuda" else "gloo")
    config = json.loads((ROOT / "scripts" / "zero2.json").read_text())
    config |= {"train_micro_batch_size_per_gpu": 4, "train_batch_size": 4, "gradient_accumulation_steps": 1}
    config |= {"bf16": {"enabled": True}, "fp16": {"enabled": False}, "gradient_clipping": 1.0}
    config["zero_optimization"]["reduce_bucket_size"] = 2**20
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine, *_ = initialize(
        model=model, optimizer=optimizer, config=config | {"zero_allow_untested_optimizer": True}
    )
    before = engine.module.weight.detach().clone()
    engine.backward(engine(torch.randn(4, 64, device=device, dtype=torch.bfloat16)).float().square().mean())
    engine.step()
    if torch.equal(before, engine.module.weight):
        raise ArithmeticError("a step changed no weight")


def liger(device: str) -> None:
    from liger_kernel.transformers import LigerRMSNorm

    norm = LigerRMSNorm(256).to(device, torch.bfloat16)
    hidden = torch.randn(8, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
    output = norm(hidden)
    output.float().sum().backward()
    close(output, nn.functional.rms_norm(hidden.detach().float(), (256,), eps=1e-6))


FEATURES = {
    "bf16": Feature("PRECISION=bf16", bf16, needs_gpu=False),
    **{
        name: Feature(f"--attn_implementation {name}", partial(flash_attention, name), module, install)
        for name, (module, _, install) in FLASH_PACKAGES.items()
    },
    "bitsandbytes": Feature(
        "--bits 4, --bits 8", bitsandbytes, "bitsandbytes", "pip install bitsandbytes", needs_gpu=False
    ),
    "deepspeed": Feature(
        "DEEPSPEED_CONFIG", deepspeed, "deepspeed", "pip install deepspeed", needs_gpu=False
    ),
    "liger": Feature("--use_liger_kernel True", liger, "liger_kernel", "pip install liger-kernel"),
}


def try_feature(name: str, device: str) -> dict:
    """The outcome: works, not installed, or needs a GPU. Raises the error of a step that fails."""
    feature = FEATURES[name]
    if feature.needs_gpu and device == "cpu":
        return {"outcome": "needs a GPU"}
    if feature.module and find_spec(feature.module) is None:
        return {"outcome": "not installed", "remedy": feature.install}
    feature.step(device)
    return {"outcome": "works"}
