"""Liger's fused kernels (Triton, on a GPU) in a language model: RMSNorm, SwiGLU and rotary embedding.

Liger looks families up by model_type, of which ours are unknown to it. Its fused cross-entropy is left out:
the training loss computes the logits of labelled positions alone, in pieces (llava/model/loss.py).
"""

import logging
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.errors import UserError
from llava.model.vision_config import plain_type

logger = logging.getLogger(__name__)


def check_liger() -> None:
    """Raises UserError unless Liger is installed and there is a GPU for it."""
    if find_spec("liger_kernel") is None:
        raise UserError(
            "--use_liger_kernel needs liger-kernel, which is not installed; pip install liger-kernel."
        )
    if not torch.cuda.is_available():
        raise UserError("--use_liger_kernel needs a GPU, and there is none; leave it out.")


def apply_liger_kernels(model: PreTrainedModel) -> int:
    """Replace what Liger has for the model's language-model family, in place; weights stay where they are.

    Liger replaces the rotary embedding of the family for the whole process.

    Returns:
        the number of modules that run a kernel of Liger's.
    Raises:
        UserError: as check_liger, or for a family that Liger does not know.
    """
    check_liger()
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    family = plain_type(type(model.config))
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"--use_liger_kernel: Liger has no kernels for {family}; leave it out.")
    MODEL_TYPE_TO_APPLY_LIGER_FN[family](
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=model,
    )
    replaced = [name for name, module in model.named_modules() if runs_liger(module)]
    if not replaced:
        raise UserError(f"--use_liger_kernel: Liger replaced no module of {family}; leave it out.")
    logger.info("Liger: %d modules of the %s family, and its rotary embedding", len(replaced), family)
    return len(replaced)


def runs_liger(module: nn.Module) -> bool:
    """Whether an instance's forward is one of Liger's."""
    forward = getattr(module.forward, "__func__", module.forward)
    return forward.__module__.startswith("liger_kernel.")
