"""Attention followed through the layers: rollout, and relevance by gradients.

Both read a finished conversation and need the whole attention [heads, T, T]. Rollout needs one layer's at a
time; relevance needs that of all layers, for its backward pass.

A: answer tokens; T: positions of prompt and answer without the last; C: columns (positions attended to).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava.visualization.capture import attention_implementation, attention_modules, capture_attention


def before_last(merged) -> dict[str, Tensor]:
    """Return merge_inputs' result as a decoder's inputs, without the last position. That position is not
    needed: it predicts what comes after the answer, and no answer token was predicted from it."""
    return {
        name: getattr(merged, name)[:, :-1] for name in ("inputs_embeds", "attention_mask", "position_ids")
    }


@torch.no_grad()
def rollout(
    model: PreTrainedModel, merged, answer_ids: Tensor, layers: Sequence[int], columns: Tensor
) -> Tensor:
    """Attention rollout: how much of a position's state came from each other position, up to a layer.

    It is a product over the layers, from the first up to the chosen one. Each factor is half the heads' mean
    attention plus half the identity, for the residual connection. Only one product, [T, T], is kept.

    Source: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.

    Args:
        model: a LLaVA model.
        merged: the model's merge_inputs result for a prompt and the answer's tokens.
        answer_ids: long[A], the answer's tokens.
        layers: indices, resolve_layers' result.
        columns: long[C], the positions whose values are returned.
    Returns:
        float32[layers, A, C]; a row over all positions sums to 1.
    """
    length = merged.inputs_embeds.shape[1] - 1
    flow = torch.eye(length, device=merged.inputs_embeds.device)

    def pass_on(weights: Tensor) -> Tensor:
        nonlocal flow
        flow = 0.5 * (weights.mean(dim=0) @ flow + flow)
        return flow[-len(answer_ids) :, columns]

    with capture_attention(model, range(max(layers) + 1), pass_on, num_rows=length) as captured:
        model.get_decoder()(**before_last(merged), use_cache=False)
    return torch.stack([captured[layer][0] for layer in layers])


def relevance(
    model: PreTrainedModel, merged, answer_ids: Tensor, layers: Sequence[int], columns: Tensor
) -> Tensor:
    """Relevance of each position for a chosen token: gradient times attention, accumulated over the layers.

    Let A be a layer's attention and ∇A the gradient of the token's logit with respect to it. R starts as the
    identity, and each layer makes it R + (mean over heads of relu(∇A ⊙ A)) · R. There is one backward pass
    for each token. It runs from the last layer to the first, so a row of R is carried down as a vector, and
    only one layer's gradient is held at a time.

    Source: Chefer, Gur and Wolf 2021, "Generic Attention-Model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers", section 3.1, equations 5 and 6.

    Args:
        model, merged, answer_ids, layers, columns: as in rollout. Layers above a chosen layer are left out of
            its R, but not out of the gradient.
    Returns:
        float32[layers, A, C], at least 0; only the ratios within a row are meaningful.
    """
    decoder, num_new = model.get_decoder(), len(answer_ids)
    inputs = before_last(merged)
    embeds = inputs["inputs_embeds"] = inputs["inputs_embeds"].detach().requires_grad_()
    rows: dict[int, Tensor] = {}  # chosen layer to its row of R, float32[T], for the current token

    def carry_down(layer: int, weights: Tensor, gradient: Tensor) -> None:
        step = (gradient[0].float() * weights[0].float()).clamp(min=0).mean(dim=0)
        for chosen in rows:
            if layer <= chosen:
                rows[chosen] = rows[chosen] + rows[chosen] @ step

    def follow(layer: int, module, inputs, output) -> None:
        # Detached: a hook that held its own tensor would keep the whole graph alive
        output[1].register_hook(partial(carry_down, layer, output[1].detach()))

    relevances = []
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(attention_implementation(decoder, "eager"))
        for layer, module in enumerate(attention_modules(decoder)[: max(layers) + 1]):
            stack.callback(module.register_forward_hook(partial(follow, layer)).remove)
        logits = model(**inputs, use_cache=False, logits_to_keep=num_new).logits[0]
        start = torch.eye(embeds.shape[1], device=embeds.device)[-num_new:]
        for i, token in enumerate(answer_ids.tolist()):
            rows.update(dict.fromkeys(layers, start[i]))
            torch.autograd.grad(logits[i, token], embeds, retain_graph=i + 1 < num_new)
            relevances.append(torch.stack([rows[layer][columns] for layer in layers]))
    return torch.stack(relevances, dim=1)
