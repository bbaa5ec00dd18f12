"""Capture the attention of a sequence's last rows while a model runs, and leave the model as it was.

R rows (positions that look), K columns (positions seen so far), d width of a head.
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
Reduce = Callable[[Tensor], Kept]  # float32[heads, R, K] of one layer to what is kept of it
# How a decoder names its list of layers, and a layer its attention, whose second output is the weights
NAMES = {"layers": "self_attn", "blocks": "attn"}
SDPA_WITH_ROWS = "sdpa_with_rows"


def row_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention of the last R positions alone.

    Args:
        query: float[B, heads, R, d].
        key: float[B, key heads, K, d]; each serves heads // key heads of the query's.
        mask: bool[B, 1, Q, K] of the last Q >= R positions, True where one is seen; None: all up to itself.
        scaling: of the scores; None: d ** -0.5.
    Returns:
        float32[B, heads, R, K]; a row sums to 1.
    """
    num_rows, length = query.shape[2], key.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Heads that share a key as further rows of it: the keys are read once, not repeated
    rows = query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1]) * scaling
    scores = (rows @ key.transpose(2, 3)).view(query.shape[0], -1, num_rows, length)
    if mask is not None:
        assert mask.dtype == torch.bool, "sdpa_mask gives truth values"
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
    """transformers' scaled dot product attention, which gives no weights, and those of the last rows.

    Args:
        last_rows: R; 0 for none.
    Returns:
        (the attention's output, float32[B, heads, R, K] or None).
    """
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if not last_rows:
        return output, None
    return output, row_weights(query[:, :, -last_rows:], key, attention_mask, kwargs.get("scaling"))


# Once, by name; a model uses it only while its configuration says so. Without a mask function, no mask comes.
AttentionInterface.register(SDPA_WITH_ROWS, sdpa_with_rows)
AttentionMaskInterface.register(SDPA_WITH_ROWS, sdpa_mask)


def attention_modules(decoder: nn.Module) -> list[nn.Module]:
    """Of every layer, in order. Raises UserError for a decoder that names them in no way known here."""
    for layers, attention in NAMES.items():
        if hasattr(decoder, layers):
            return [getattr(layer, attention) for layer in getattr(decoder, layers)]
    raise UserError(
        f"where {type(decoder).__name__} has its attention is unknown; add its names to "
        "llava.visualization.capture.NAMES."
    )


def chooses_attention(decoder: PreTrainedModel) -> bool:
    """Whether its attention is found by name; MPT computes its own, and always gives all weights."""
    return decoder._supports_attention_backend


@contextmanager
def attention_implementation(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, a decoder's attention is the one of this name, where it can choose; no vision tower's is."""
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
    """Inside, each pass of the decoder adds what `reduce` leaves of its attention to the lists given.

    Of the passes of `generate`, each leaves the row that predicted a token. The output is that of scaled dot
    product attention, and no tensor of [heads, Q, K] is made, not for the prompt either, save by MPT, which
    always makes it. Afterwards, exceptions included, every part runs as before.

    Args:
        model: a causal language model of transformers.
        layers: indices, resolve_layers' result.
        reduce: called on each layer's float32[heads, R, K] as it comes, on its device; columns are positions
            of the sequence, 0 where a sliding window has left one behind.
        num_rows: R, last positions of each pass that are read.
    Yields:
        {layer: [what `reduce` gave of each pass]}.
    Raises:
        UserError: as attention_modules; inside, if several sequences come at once.
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
                f"attention is captured of one sequence at a time, {num_sequences} came; "
                "generate one answer, with num_beams=1."
            )
        weights = output[1][0, :, -num_rows:].float()  # all rows of MPT's
        begins = weights.shape[-1] == length  # nothing comes from a cache
        num_seen[layer] = length if begins else num_seen[layer] + length
        gone = num_seen[layer] - weights.shape[-1]
        assert gone >= 0, "a cache holds no more positions than came"
        captured[layer].append(reduce(F.pad(weights, (gone, 0)) if gone else weights))

    with ExitStack() as stack:
        stack.enter_context(attention_implementation(decoder, SDPA_WITH_ROWS))
        for layer in layers:
            if chooses_attention(decoder):
                hook = modules[layer].register_forward_pre_hook(ask, with_kwargs=True)
                stack.callback(hook.remove)
            stack.callback(modules[layer].register_forward_hook(partial(keep, layer)).remove)
        yield captured
