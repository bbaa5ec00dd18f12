"""Liger's fused kernels (Triton, on a GPU) in a language model: RMSNorm, SwiGLU and rotary embedding.

Liger looks a family up by its model_type and does not know ours. Its fused cross-entropy is not used: the
training loss computes only the logits of labelled positions, in pieces (llava/model/loss.py).
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
            "--use_liger_kernel needs liger-kernel, which is not installed; run pip install liger-kernel."
        )
    if not torch.cuda.is_available():
        raise UserError("--use_liger_kernel needs a GPU, but there is none; leave it out.")


def apply_liger_kernels(model: PreTrainedModel) -> int:
    """Give the language model the kernels that Liger has for its family, in place; the weights are kept.

    Liger replaces the rotary embedding of the family for the whole process.

    Returns:
        the number of modules that run one of Liger's kernels.
    Raises:
        UserError: as check_liger does, or if Liger does not know the family or replaces no module.
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
    logger.info(
        "Liger: replaced %d modules of the %s family, and its rotary embedding", len(replaced), family
    )
    return len(replaced)


def runs_liger(module: nn.Module) -> bool:
    """Whether an instance's forward is one of Liger's."""
    forward = getattr(module.forward, "__func__", module.forward)
    return forward.__module__.startswith("liger_kernel.")
