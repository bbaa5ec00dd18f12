"""Access to parameters under DeepSpeed's ZeRO-3, which splits them among the ranks."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from torch import Tensor


def gathered(parameters: Iterable[Tensor], write: bool = False) -> AbstractContextManager:
    """A context in which parameters split by ZeRO-3 are whole on every rank; `write` keeps changes to them.

    It is a collective: every rank must enter it, and with `write` every rank must write the same values.
    """
    pieces = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not pieces:
        return nullcontext()
    # Not by an import statement: transformers refuses a folder whose code has one of a missing package
    deepspeed = import_module("deepspeed")
    return deepspeed.zero.GatheredParameters(pieces, modifier_rank=0 if write else None)
