"""Parameters under DeepSpeed's ZeRO-3, which holds them in pieces."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from torch import Tensor


def gathered(parameters: Iterable[Tensor], write: bool = False) -> AbstractContextManager:
    """Within it parameters that ZeRO-3 holds in pieces are whole on every rank; `write`: they are kept so.

    A collective: every rank enters it, and with `write` every rank writes the same.
    """
    pieces = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not pieces:
        return nullcontext()
    # By its name: transformers refuses a folder whose code has an import statement of what is not installed
    deepspeed = import_module("deepspeed")
    return deepspeed.zero.GatheredParameters(pieces, modifier_rank=0 if write else None)
