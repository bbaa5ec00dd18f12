"""Capture the attention of a sequence's last rows while a model runs, and restore the model afterwards.

R: rows (positions whose attention is read); K: columns (positions up to now); d: width of a head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llava.errors import UserError

Kept = TypeVar("Kept")
Reduce = Callable[[Tensor], Kept]  # maps one layer's float32[heads, R, K] to what is kept
# Maps a decoder's name for its list of layers to a layer's name for its attention module. The second output
# of that module is the weights.
NAMES = {"layers": "self_attn", "blocks": "attn"}
SDPA_WITH_ROWS = "sdpa_with_rows"


def row_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return the attention weights of only the last R positions.

    Args:
        query: float[B, heads, R, d].
        key: float[B, key heads, K, d]; each key head serves heads // key heads of the query's heads.
        mask: bool[B, 1, Q, K] for the last Q >= R positions, True where a position is visible; None: causal.
        scaling: factor of the scores; None: d ** -0.5.
    Returns:
        float32[B, heads, R, K]; a row sums to 1.
    """
    num_rows, length = query.shape[2], key.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Query heads that share a key head become further rows of one product, so that no key is repeated
    rows = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1]) * scaling
    scores = (rows @ key.transpose(2, 3)).view(query.shape[0], -1, num_rows, length)
    if mask is not None:
        assert mask.dtype == torch.bool, "sdpa_mask returns booleans"
        scores = scores.masked_fill(~mask[:, :, -num_rows:], -torch.inf)
    elif num_rows > 1:
        hidden = torch.ones(num_rows, length, dtype=torch.bool, device=key.device)
        scores = scores.masked_fill(hidden.triu(length - num_rows + 1), -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.float32)


def sdpa_with_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    last_rows: int = 0,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """Run transformers' scaled dot product attention and compute the last rows' weights, which it omits.

    Args:
        last_rows: R; 0 for none.
    Returns:
        (the attention's output, float32[B, heads, R, K] or None).
    """
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if not last_rows:
        return output, None
    return output, row_weights(query[:, :, -last_rows:], key, attention_mask, kwargs.get("scaling"))


# Registered once, by name; a model uses it only while its configuration has this name. If no mask function
# were registered, the attention would get no mask.
AttentionInterface.register(SDPA_WITH_ROWS, sdpa_with_rows)
AttentionMaskInterface.register(SDPA_WITH_ROWS, sdpa_mask)


def attention_modules(decoder: nn.Module) -> list[nn.Module]:
    """Return every layer's attention module, in order. Raises UserError if NAMES does not fit the decoder."""
    for layers, attention in NAMES.items():
        if hasattr(decoder, layers):
            return [getattr(layer, attention) for layer in getattr(decoder, layers)]
    raise UserError(
        f"the names of the attention modules of {type(decoder).__name__} are unknown; add them to "
        "llava.visualization.capture.NAMES."
    )


def chooses_attention(decoder: PreTrainedModel) -> bool:
    """Whether a decoder chooses its attention by name. MPT has its own, which always returns all weights."""
    return decoder._supports_attention_backend


@contextmanager
def attention_implementation(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the context, a decoder that can choose uses this attention; vision towers keep theirs."""
    before = decoder.config._attn_implementation
    try:
        if chooses_attention(decoder):
            decoder.config._attn_implementation = name
        yield
    finally:
        decoder.config._attn_implementation = before


@contextmanager
def capture_attention(
    model: PreTrainedModel, layers: Sequence[int], reduce: Reduce[Kept], num_rows: int = 1
) -> Iterator[dict[int, list[Kept]]]:
    """Within the context, append what `reduce` returns for each pass of the decoder to the layers' lists.

    In `generate`, each pass adds the row that predicted a token. The output is that of scaled dot product
    attention. No tensor [heads, Q, K] is made, even for the prompt, except by MPT, which always makes it. On
    leaving the context, also by an exception, every part runs as before.

    Args:
        model: a causal language model of transformers.
        layers: indices, resolve_layers' result.
        reduce: called on each layer's float32[heads, R, K] during the pass, on its device. Columns are
            positions of the sequence; those that a sliding window has dropped are 0.
        num_rows: R, the number of last positions of each pass that are read.
    Yields:
        A dictionary from each layer to the list of what `reduce` returned for each pass.
    Raises:
        UserError: as attention_modules; within the context, if a pass has more than one sequence.
    """
    decoder = model.get_decoder()
    modules = attention_modules(decoder)
    captured: dict[int, list[Kept]] = {layer: [] for layer in layers}
    num_seen = dict.fromkeys(layers, 0)

    def ask(module, inputs, options):
        return inputs, {**options, "last_rows": num_rows}

    def keep(layer: int, module, inputs, output):
        num_sequences, length = output[0].shape[:2]
        if num_sequences != 1:
            raise UserError(
                f"attention is captured for one sequence at a time, got {num_sequences}; "
                "generate one answer, with num_beams=1."
            )
        weights = output[1][0, :, -num_rows:].float()  # MPT returns all rows
        begins = weights.shape[-1] == length  # nothing comes from a cache
        num_seen[layer] = length if begins else num_seen[layer] + length
        gone = num_seen[layer] - weights.shape[-1]
        assert gone >= 0, "a cache has at most as many positions as the sequence"
        captured[layer].append(reduce(F.pad(weights, (gone, 0)) if gone else weights))

    with ExitStack() as stack:
        stack.enter_context(attention_implementation(decoder, SDPA_WITH_ROWS))
        for layer in layers:
            if chooses_attention(decoder):
                hook = modules[layer].register_forward_pre_hook(ask, with_kwargs=True)
                stack.callback(hook.remove)
            stack.callback(modules[layer].register_forward_hook(partial(keep, layer)).remove)
        yield captured
