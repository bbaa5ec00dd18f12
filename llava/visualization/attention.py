"""Capture attention weights of a few rows and columns, and leave the model as it was.

R rows (positions that look), C columns (positions looked at), T sequence length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def resolve_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Layer indices in 0..num_layers-1; negative ones count from the end, repeated ones are kept once.

    Raises:
        ValueError: for an index outside the model; names the range.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise ValueError(
                f"--layers: layer {layer} is outside the model's {num_layers}; choose from 0 to "
                f"{num_layers - 1}, or from -1 (the last) to {-num_layers}."
            )
    return list(dict.fromkeys(layer % num_layers for layer in layers))


Kept = TypeVar("Kept")
Reduce = Callable[[Tensor], Kept]  # float32[heads, R, C] of one layer to what is kept of it
# How a decoder names its list of layers, and a layer its attention, whose second output is the weights
NAMES = {"layers": "self_attn", "blocks": "attn"}


def attention_modules(decoder: nn.Module) -> list[nn.Module]:
    """Of every layer, in order.

    Raises:
        ValueError: for a decoder that names them in no way known here.
    """
    for layers, attention in NAMES.items():
        if hasattr(decoder, layers):
            return [getattr(layer, attention) for layer in getattr(decoder, layers)]
    raise ValueError(
        f"where {type(decoder).__name__} has its attention is unknown; add its names to "
        "llava.visualization.attention.NAMES."
    )


def over_heads(model: PreTrainedModel, head: int | None) -> Reduce[Tensor]:
    """float[heads, ...] to float[...]: one head, from 0, or with None the mean.

    Raises:
        ValueError: for a head that the model does not have.
    """
    num_heads = model.config.num_attention_heads
    if head is None:
        return lambda weights: weights.mean(dim=0)
    if not 0 <= head < num_heads:
        raise ValueError(f"--head {head}: the model has {num_heads} heads; choose from 0 to {num_heads - 1}.")
    return lambda weights: weights[head]


@contextmanager
def capture_attention(
    model: PreTrainedModel, layers: Sequence[int], rows: Tensor, columns: Tensor, reduce: Reduce[Kept]
) -> Iterator[dict[int, Kept]]:
    """Inside, each forward pass of the decoder on one sequence fills the dict that is given.

    Attention runs in its eager form meanwhile, since no other gives weights; afterwards, exceptions included,
    every part runs as before. Whole weights, [heads, T, T], exist for one layer at a time.

    Args:
        model: a causal language model of transformers.
        layers: indices, resolve_layers' result.
        rows, columns: long[R], long[C], positions of the sequence.
        reduce: called on each layer's float32[heads, R, C], on the CPU, as it comes.
    Yields:
        {layer: what `reduce` gave}.
    Raises:
        ValueError: as attention_modules.
    """
    decoder = model.get_decoder()
    modules = attention_modules(decoder)
    captured: dict[int, Kept] = {}

    def keep(layer: int):
        def hook(module, inputs, output):
            weights = output[1]
            assert weights is not None, "eager attention gives weights"
            part = weights[0][:, rows.to(weights.device)]  # [heads, R, T]
            captured[layer] = reduce(part[:, :, columns.to(weights.device)].float().cpu())

        return hook

    # Parents come ahead of children: a config hands its value down, and the children's own then overrides it
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [(config, config._attn_implementation) for config in configs]
    hooks = []
    try:
        hooks = [modules[layer].register_forward_hook(keep(layer)) for layer in layers]
        decoder.set_attn_implementation("eager")
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
        for config, implementation in before:
            config._attn_implementation = implementation


def read_answer(
    model: PreTrainedModel,
    merged,
    num_new: int,
    layers: Sequence[int],
    columns: Tensor,
    reduce: Reduce[Kept],
) -> list[Kept]:
    """Attention of an answer's tokens when each was chosen, of each layer as `reduce` gives it.

    The row of an answer token is the position just before it: the one whose output predicted it.

    Args:
        model: a LLaVA model.
        merged: its merge_inputs' result for a prompt and `num_new` answer tokens.
        num_new: answer tokens, at least 1.
        layers, columns, reduce: as in capture_attention.
    """
    length = merged.inputs_embeds.shape[1]
    rows = torch.arange(length - num_new - 1, length - 1)
    with torch.inference_mode(), capture_attention(model, layers, rows, columns, reduce) as captured:
        model.get_decoder()(
            inputs_embeds=merged.inputs_embeds,
            attention_mask=merged.attention_mask,
            position_ids=merged.position_ids,
            use_cache=False,
        )
    return [captured[layer] for layer in layers]


@torch.inference_mode()
def attention_to_image(
    model: PreTrainedModel,
    input_ids: Tensor,
    num_new: int,
    images: Tensor | list[Tensor],
    image_sizes: list[tuple[int, int]],
    layers: Sequence[int],
    head: int | None = None,
    scale_factor: int | None = None,
) -> Tensor:
    """How much each answer token looked at each visual token when it was chosen.

    Args:
        model: a LLaVA model.
        input_ids: long[1, T], the prompt with an IMAGE_TOKEN_INDEX for each image, then `num_new` answer
            tokens.
        num_new: answer tokens, at least 1.
        images, image_sizes: as the model takes them.
        layers: as in capture_attention.
        head: as in over_heads.
        scale_factor: s, by default model.config.scale_factor.
    Returns:
        float32[layers, num_new, M']: shares of attention (a whole row of the model's own sums to 1), visual
        tokens in the prompt's order, separators of tiles left out.
    """
    reduce = over_heads(model, head)
    merged = model.merge_inputs(input_ids, images=images, image_sizes=image_sizes, scale_factor=scale_factor)
    columns = torch.nonzero(merged.visual_index[0] >= 0).flatten()
    return torch.stack(read_answer(model, merged, num_new, layers, columns, reduce))
