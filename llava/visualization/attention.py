"""Attention, rollout or relevance of each visual token for an answer's tokens, from a whole conversation.

A: answer tokens; C: columns (positions attended to); M': visual tokens; T: prompt ids.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.errors import UserError
from llava.visualization.capture import Kept, Reduce, capture_attention
from llava.visualization.influence import before_last, relevance, rollout


def resolve_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Return layer indices in 0..num_layers-1; negative ones count from the end, repeated ones are kept once.

    Raises UserError, which names the allowed range, for an index outside the model.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise UserError(
                f"--layers: layer {layer} is outside the model's {num_layers} layers; choose from 0 to "
                f"{num_layers - 1}, or from -1 (the last) to {-num_layers}."
            )
    return list(dict.fromkeys(layer % num_layers for layer in layers))


def over_heads(model: PreTrainedModel, head: int | None) -> Reduce[Tensor]:
    """Return a function from float[heads, ...] to float[...]: one head, from 0, or the mean if it is None.

    Raises UserError for a head that the model does not have.
    """
    num_heads = model.config.num_attention_heads
    if head is None:
        return lambda weights: weights.mean(dim=0)
    if not 0 <= head < num_heads:
        raise UserError(f"--head {head}: the model has {num_heads} heads; choose from 0 to {num_heads - 1}.")
    return lambda weights: weights[head]


def visual_columns(merged) -> Tensor:
    """Return long[M'], the positions of a merged sequence's visual tokens, without separators of tiles."""
    assert len(merged.inputs_embeds) == 1, "columns are places in a batch of one sequence"
    return merged.visual_places


@torch.no_grad()
def read_answer(
    model: PreTrainedModel, merged, num_new: int, layers: Sequence[int], reduce: Reduce[Kept]
) -> list[Kept]:
    """Return for each layer what `reduce` gives for the attention by which an answer's tokens were chosen.

    The row of an answer token is that of the position just before it, whose output predicted the token. Only
    these rows are computed.

    Args:
        model: a LLaVA model.
        merged: the model's merge_inputs result for a prompt and `num_new` answer tokens.
        num_new: answer tokens, at least 1.
        layers, reduce: as in capture_attention.
    """
    with capture_attention(model, layers, reduce, num_new) as captured:
        model.get_decoder()(**before_last(merged), use_cache=False)
    return [captured[layer][0] for layer in layers]


# Maps (model, merge_inputs' result, the ids long[A] at its end, layers, long[C]) to float32[layers, A, C]
Influence = Callable[[PreTrainedModel, object, Tensor, Sequence[int], Tensor], Tensor]
INFLUENCES: dict[str, Influence] = {"rollout": rollout, "relevance": relevance}
METHODS = ("attention", *INFLUENCES)


def check_method(method: str, head: int | None) -> None:
    """Raise a UserError for an unknown method, or for a head with a method that is not `attention`."""
    if method not in METHODS:
        raise UserError(f"--method must be one of {', '.join(METHODS)}, got {method!r}.")
    if head is not None and method != "attention":
        raise UserError(
            f"--head {head} was given, but --method {method} uses all heads; leave --head out, or choose "
            "--method attention."
        )


@torch.no_grad()
def attention_to_image(
    model: PreTrainedModel,
    input_ids: Tensor,
    num_new: int,
    images: Tensor | list[Tensor],
    image_sizes: list[tuple[int, int]],
    layers: Sequence[int],
    head: int | None = None,
    *,
    method: str = "attention",
    scale_factor: int | None = None,
) -> Tensor:
    """Return the weight of each visual token for each token of an answer when it was chosen.

    For an answer in the middle of a conversation, pass the conversation up to that answer's end.

    Args:
        model: a LLaVA model.
        input_ids: long[1, T], the prompt with an IMAGE_TOKEN_INDEX for each image, then the answer.
        num_new: answer tokens, at least 1.
        images: in the form that merge_inputs takes, in the order of their placeholders.
        image_sizes: (width, height) of each.
        layers: as in capture_attention.
        head: as in over_heads, for method attention.
        method: one of METHODS. `attention` reads each layer's own attention; `rollout` and `relevance`
            combine all layers up to each of `layers` (see llava.visualization.influence).
        scale_factor: the s that the answer was given at; by default model.config.scale_factor.
    Returns:
        float32[layers, num_new, M'] on the CPU. Visual tokens are in the prompt's order, image after image;
        an image has `len(token_map(...).order)` of them. With attention and rollout the values are shares: a
        row over all positions sums to 1.
    Raises:
        UserError: for a head or method that does not exist, and as merge_inputs.
    """
    check_method(method, head)
    choose = over_heads(model, head)
    merged = model.merge_inputs(input_ids, images=images, image_sizes=image_sizes, scale_factor=scale_factor)
    columns = visual_columns(merged)
    if method == "attention":
        rows = read_answer(model, merged, num_new, layers, lambda weights: choose(weights[..., columns]))
        return torch.stack(rows).cpu()
    return INFLUENCES[method](model, merged, input_ids[0, -num_new:], layers, columns).cpu()
