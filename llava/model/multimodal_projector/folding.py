"""Evaluation forms compute the same function with less work, from folded weights that are kept up to date."""

# Legend: multimodal_projector/base.py

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_projector.region_attention import (
    RegionAttention,
    attention_weights,
    weighted_values,
)


def own_tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers in a fixed order; several times faster than the module's own iterators."""
    tensors, modules = [], [module]
    while modules:
        part = modules.pop()
        tensors += part._parameters.values()
        tensors += part._buffers.values()
        modules += [child for child in part._modules.values() if child is not None]
    return [tensor for tensor in tensors if tensor is not None]


def fingerprint(module: nn.Module) -> list[tuple]:
    """A list that changes if a parameter or buffer is written to, replaced or moved; needs no device work."""
    return [(t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in own_tensors(module)]


@contextmanager
def made_to_keep(device: torch.device) -> Iterator[None]:
    """Make tensors for all later calls.

    They are no inference tensors, so a later call may have gradients of its inputs. Autocast is off.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


class Foldable(nn.Module):
    """A module with an evaluation form, which is made at the first call and again when a weight has changed.

    Attributes:
        folds: whether there is an evaluation form.
    """

    folds = True
    _folded: tuple[list, object] | None = None
    _kept: object | None = None  # set by prepare_to_compile

    def train(self, mode: bool = True) -> "Foldable":
        # around a change of mode, weights may be replaced in ways that the fingerprint does not show
        self._folded = self._kept = None
        return super().train(mode)

    def folded_form_serves(self) -> bool:
        """Whether the evaluation form can be used: in evaluation mode, with two exceptions.

        Folding would hide the gradients of the weights, if they are wanted. ZeRO-3 gathers the weights that
        it has split only for the modules that own them.
        """
        if not self.folds or self.training:
            return False
        is_in_pieces = any(hasattr(p, "ds_id") for p in self.parameters())
        wants_gradients = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return not is_in_pieces and not wants_gradients

    def fold(self, products: bool):
        """Make the folded form of the present weights.

        Args:
            products: whether matrices are multiplied together. This saves work at every call, but costs more
                than it saves if the form is made at every call.
        """
        raise NotImplementedError

    def folded(self):
        """Return the evaluation form of the present weights; it is made again when any of them has changed.

        A compiled graph cannot check whether weights have changed. It uses the form that prepare_to_compile
        made. Without one the form is made in the graph, where the compiler merges its small operations.
        """
        if torch.compiler.is_compiling():
            return self.fold(products=False) if self._kept is None else self._kept
        now = fingerprint(self)
        if self._folded is None or self._folded[0] != now:
            with made_to_keep(next(self.parameters()).device):
                self._folded = (now, self.fold(products=True))
        return self._folded[1]

    @torch.no_grad()
    def prepare_to_compile(self) -> None:
        """Fold now for compiled graphs, which ignore changes of the weights until train or eval is called."""
        if self.folded_form_serves():
            self._kept = self.folded()


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, in float32 or wider and rounded once; in half precision it takes some CPUs seconds."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) @ right.to(wide)).to(left.dtype)


class FoldedAttention:
    """A compressor's region attention, with its scale and the bias of its values folded into the weights.

    Args:
        attention: the compressor's attention.
        after: a linear map that follows; the out-projection is multiplied into it. By default there is none.
    """

    def __init__(self, attention: RegionAttention, after: nn.Linear | None = None):
        self.query_weight, self.query_bias = (part * attention.scale for part in attention.query_map())
        self.key_map, self.value_map = attention.head_maps()
        out_proj, value_bias = attention.out_proj, attention.in_proj_bias.chunk(3)[2]
        self.weight, self.bias = out_proj.weight, product(out_proj.weight, value_bias) + out_proj.bias
        if after is not None:
            self.weight = product(after.weight, self.weight)
            self.bias = product(after.weight, self.bias) + after.bias

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query float[B, M, E], key and value float[B*M, s*s, E] grouped by region, to float[B, M, ...]."""
        projected = F.linear(query.flatten(0, 1), self.query_weight, self.query_bias)
        weights = attention_weights(projected, key, self.key_map)
        gathered = weighted_values(weights, value, self.value_map)
        return F.linear(gathered, self.weight, self.bias).unflatten(0, query.shape[:2])
