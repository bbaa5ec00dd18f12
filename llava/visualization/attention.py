"""How much an answer's words owe to each visual token, read from a whole conversation.

A answer tokens, C columns (positions looked at), M' visual tokens, T prompt ids.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.errors import UserError
from llava.visualization.capture import Kept, Reduce, capture_attention
from llava.visualization.influence import before_last, relevance, rollout


def resolve_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Layer indices in 0..num_layers-1; negative ones count from the end, repeated ones are kept once.

    Raises UserError for an index outside the model; names the range.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise UserError(
                f"--layers: layer {layer} is outside the model's {num_layers}; choose from 0 to "
                f"{num_layers - 1}, or from -1 (the last) to {-num_layers}."
            )
    return list(dict.fromkeys(layer % num_layers for layer in layers))


def over_heads(model: PreTrainedModel, head: int | None) -> Reduce[Tensor]:
    """float[heads, ...] to float[...]: one head, from 0, or with None the mean.

    Raises UserError for a head that the model does not have.
    """
    num_heads = model.config.num_attention_heads
    if head is None:
        return lambda weights: weights.mean(dim=0)
    if not 0 <= head < num_heads:
        raise UserError(f"--head {head}: the model has {num_heads} heads; choose from 0 to {num_heads - 1}.")
    return lambda weights: weights[head]


def visual_columns(merged) -> Tensor:
    """long[M']: where a merged sequence has its visual tokens, separators of tiles left out."""
    assert len(merged.inputs_embeds) == 1, "columns are places in a batch of one sequence"
    return merged.visual_places


@torch.no_grad()
def read_answer(
    model: PreTrainedModel, merged, num_new: int, layers: Sequence[int], reduce: Reduce[Kept]
) -> list[Kept]:
    """Attention of an answer's tokens when each was chosen, of each layer as `reduce` gives it.

    The row of an answer token is the position just before it: the one whose output predicted it. Rows of no
    other position are computed.

    Args:
        model: a LLaVA model.
        merged: its merge_inputs' result for a prompt and `num_new` answer tokens.
        num_new: answer tokens, at least 1.
        layers, reduce: as in capture_attention.
    """
    with capture_attention(model, layers, reduce, num_new) as captured:
        model.get_decoder()(**before_last(merged), use_cache=False)
    return [captured[layer][0] for layer in layers]


# (model, merge_inputs' result, long[A] at its end, layers, long[C]) to float32[layers, A, C]
Influence = Callable[[PreTrainedModel, object, Tensor, Sequence[int], Tensor], Tensor]
INFLUENCES: dict[str, Influence] = {"rollout": rollout, "relevance": relevance}
METHODS = ("attention", *INFLUENCES)


def check_method(method: str, head: int | None) -> None:
    """Raises UserError for a method that is not there, or that cannot take one head."""
    if method not in METHODS:
        raise UserError(f"--method must be one of {', '.join(METHODS)}, got {method!r}.")
    if head is not None and method != "attention":
        raise UserError(
            f"--head {head} came with --method {method}, which is defined over all heads; leave --head out, "
            "or choose --method attention."
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
    """How much each token of an answer owed to each visual token when it was chosen.

    For an answer in the middle of a conversation pass the conversation up to that answer's end.

    Args:
        model: a LLaVA model.
        input_ids: long[1, T], the prompt with an IMAGE_TOKEN_INDEX for each image, then the answer.
        num_new: answer tokens, at least 1.
        images: as merge_inputs takes them, in the order of their placeholders.
        image_sizes: (width, height) of each.
        layers: as in capture_attention.
        head: as in over_heads, for method attention.
        method: one of METHODS: attention, a layer's own; rollout and relevance, all layers' up to each of
            `layers`, as llava.visualization.influence says.
        scale_factor: s the answer was given at, by default model.config.scale_factor.
    Returns:
        float32[layers, num_new, M'] on the CPU, visual tokens in the prompt's order, image after image, each
        with `len(token_map(...).order)` of them. Shares where the method is attention or rollout: a row of
        all positions sums to 1.
    Raises:
        UserError: for a head or method that is not there, or as merge_inputs.
    """
    check_method(method, head)
    choose = over_heads(model, head)
    merged = model.merge_inputs(input_ids, images=images, image_sizes=image_sizes, scale_factor=scale_factor)
    columns = visual_columns(merged)
    if method == "attention":
        rows = read_answer(model, merged, num_new, layers, lambda weights: choose(weights[..., columns]))
        return torch.stack(rows).cpu()
    return INFLUENCES[method](model, merged, input_ids[0, -num_new:], layers, columns).cpu()
