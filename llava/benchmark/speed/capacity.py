"""How many sequences fit into memory: tried out on a GPU, elsewhere computed from the peaks of 1 and 2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from llava.benchmark.speed.models import Variant, build_prompt
from llava.benchmark.speed.shapes import Shape, kv_bytes
from llava.benchmark.timing import peak_mib


def largest_batch(model, shape: Shape, variant: Variant, settings) -> dict:
    """The largest batch whose prefill and full cache stay within settings.memory_gib, weights included."""
    variant.put_into(model)
    limit = int(settings.memory_gib * 2**30)
    positions = model.num_visual_tokens + settings.text_tokens + settings.new_tokens
    cache = kv_bytes(shape, positions, torch.finfo(settings.dtype).bits // 8)
    if settings.device.startswith("cuda"):
        fits = partial(_fits, model, cache, limit, settings)
        return {
            "largest_batch": largest(fits),
            "largest_batch_by": "found by trying, to within 1/32",
        }
    one, two = (peak_mib(_prefill(model, batch, settings), "cpu") * 2**20 for batch in (1, 2))
    # the peaks include the keys and values of the prompt, but not those of the answer
    answer = kv_bytes(shape, settings.new_tokens, torch.finfo(settings.dtype).bits // 8)
    return {
        "largest_batch": computed(limit, weight_bytes(model), one, two, answer),
        "largest_batch_by": "computed from the peaks of 1 and 2 sequences",
    }


def computed(limit: float, weights: float, one: float, two: float, answer: float) -> int:
    """The number of sequences that fit if each needs as much as the second one did, and its answer's cache.

    Args:
        one, two: peak bytes of 1 and 2 sequences, without the weights.
    """
    each = two - one
    return max(0, int((limit - weights - (one - each)) // (each + answer)))


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and bisection to a thirty-second; 0 if none does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def weight_bytes(model) -> int:
    """Bytes of the parameters and buffers; a shared tensor counts once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def _prefill(model, batch: int, settings) -> Callable:
    prompt = build_prompt(model, batch, settings.text_tokens, settings.dtype)
    return lambda: model(input_ids=prompt.input_ids, images=prompt.images, use_cache=True, logits_to_keep=1)


def _fits(model, cache: int, limit: int, settings, batch: int) -> bool:
    """Whether a batch's prefill, and its cache at the end of the answer, stay within the limit on a GPU."""
    if weight_bytes(model) + batch * cache > limit:
        return False
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        _prefill(model, batch, settings)()
        return torch.cuda.max_memory_allocated() <= limit
    except torch.OutOfMemoryError:
        return False
