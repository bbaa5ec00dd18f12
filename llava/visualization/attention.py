"""Capture attention weights of a few rows and columns, and leave the model as it was.

R rows (positions that look), C columns (positions looked at), T sequence length.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
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


@contextmanager
def capture_attention(
    model: PreTrainedModel, layers: Sequence[int], rows: Tensor, columns: Tensor, head: int | None = None
) -> Iterator[dict[int, Tensor]]:
    """Inside, each forward pass of the decoder on one sequence fills the dict that is given.

    Attention runs in its eager form meanwhile, since no other gives weights; afterwards, exceptions included,
    every part runs as before.

    Args:
        model: a causal language model of transformers.
        layers: indices, resolve_layers' result.
        rows, columns: long[R], long[C], positions of the sequence.
        head: one head, from 0; None: the mean over heads.
    Yields:
        {layer: float32[R, C]} on the CPU.
    Raises:
        ValueError: for a head that the model does not have.
    """
    num_heads = model.config.num_attention_heads
    if head is not None and not 0 <= head < num_heads:
        raise ValueError(f"--head {head}: the model has {num_heads} heads; choose from 0 to {num_heads - 1}.")
    decoder = model.get_decoder()
    captured: dict[int, Tensor] = {}

    def keep(layer: int):
        def hook(module, inputs, output):
            weights = output[1]
            assert weights is not None, "eager attention gives weights"
            part = weights[0][:, rows.to(weights.device)]  # [heads, R, T]
            part = part[:, :, columns.to(weights.device)].float()
            captured[layer] = (part.mean(dim=0) if head is None else part[head]).cpu()

        return hook

    # Parents come ahead of children: a config hands its value down, and the children's own then overrides it
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [(config, config._attn_implementation) for config in configs]
    hooks = []
    try:
        hooks = [decoder.layers[layer].self_attn.register_forward_hook(keep(layer)) for layer in layers]
        decoder.set_attn_implementation("eager")
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
        for config, implementation in before:
            config._attn_implementation = implementation


@torch.inference_mode()
def attention_to_image(
    model: PreTrainedModel,
    input_ids: Tensor,
    num_new: int,
    images: Tensor | list[Tensor],
    image_sizes: list[tuple[int, int]],
    layers: Sequence[int],
    head: int | None = None,
) -> Tensor:
    """How much each answer token looked at each visual token when it was chosen.

    The row of an answer token is the position just before it: the one whose output predicted it.

    Args:
        model: a LLaVA model.
        input_ids: long[1, T], the prompt with one IMAGE_TOKEN_INDEX, then `num_new` answer tokens.
        num_new: answer tokens, at least 1.
        images: of one image, float[1, 3, H, W] or [float[T, 3, H, W]].
        image_sizes: its (width, height).
        layers, head: as in capture_attention.
    Returns:
        float32[layers, num_new, M']: shares of attention (a whole row of the model's own sums to 1), visual
        tokens in the prompt's order, separators of tiles left out.
    """
    merged = model.merge_inputs(input_ids, images=images, image_sizes=image_sizes)
    visual = merged.visual_index[0]
    columns = torch.nonzero(visual >= 0).flatten()
    length = visual.shape[0]
    rows = torch.arange(length - num_new - 1, length - 1)
    with capture_attention(model, layers, rows, columns, head) as captured:
        model.get_decoder()(
            inputs_embeds=merged.inputs_embeds,
            attention_mask=merged.attention_mask,
            position_ids=merged.position_ids,
            use_cache=False,
        )
    return torch.stack([captured[layer] for layer in layers])
