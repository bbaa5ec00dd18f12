"""Rules for loading a model: its default dtype, and the packages that flash attention needs.

torch is imported only where it is used, so that --help does not need it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from llava.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # maps --dtype's value to torch's name
# Maps an attention implementation to the module that it needs, its package's name and how to install it
FLASH_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": (
        *("flash_attn_interface", "flash-attn-3"),
        "python setup.py install in the folder hopper of https://github.com/Dao-AILab/flash-attention",
    ),
}
FLASH_FROM_HUB = "kernels"  # with this package transformers fetches flash attention itself


def check_installed(attention: str) -> None:
    """Refuse an implementation of flash attention whose package is not installed.

    Raises UserError with the flag, the package and how to get it.
    """
    module, package, how = FLASH_PACKAGES[attention]
    if not (find_spec(module) or find_spec(FLASH_FROM_HUB)):
        raise UserError(
            f"--attn_implementation {attention}: {package} is not installed; install it with {how}, or use "
            "sdpa."
        )


def default_dtype(config: dict, device: torch.device | str) -> torch.dtype:
    """The dtype of a model if the user asks for none.

    It is float32 on a CPU, where half precision is no faster on most machines. On a GPU it is the dtype in
    which the checkpoint was saved. A checkpoint in float32 contains the master weights of training under
    autocast. They are rounded to bfloat16, in which training computed; it has float32's range, so no
    activation overflows. On a GPU without bfloat16, float16 is used instead.

    Args:
        config: content of config.json. Its key is dtype, or torch_dtype in older files; a missing key counts
            as float32.
        device: the device that the model is to run on.
    """
    import torch

    if torch.device(device).type == "cpu":
        return torch.float32
    saved = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return torch.bfloat16 if saved != "float16" and has_bf16(device) else torch.float16


def has_bf16(device: torch.device | str) -> bool:
    """Whether a GPU computes in bfloat16 without emulation, which is slow, as on GPUs before Ampere."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def dtype_flag(dtype: torch.dtype) -> str:
    """The value of --dtype for a dtype."""
    name = str(dtype).removeprefix("torch.")
    return next(flag for flag, known in DTYPES.items() if known == name)
