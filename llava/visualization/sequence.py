"""How an answer's attention is spread over the whole sequence: system prompt, image, question, answer.

A answer tokens, T' positions of prompt and answer without the last, which nothing looks at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.visualization.answer import answer_question, check_sees
from llava.visualization.attention import over_heads, read_answer, resolve_layers

SPANS = ("system", "image", "question", "answer")


@dataclass(frozen=True)
class SequenceAttention:
    """What a model answered, and where in the sequence it looked meanwhile.

    Attributes:
        answer: the whole text.
        tokens: its tokens as text.
        layers: indices of decoder layers.
        weights: float32[layers, A, T'], shares of attention; a row sums to 1.
        entropy: float32[layers, A], bits; the mean over heads of each head's own.
        bounds: int[4, 2], where each of SPANS begins and ends. `system` is all ahead of the image, `image`
            its tokens with the separators of tiles, `question` what follows up to the answer, the template's
            words included.
    """

    answer: str
    tokens: list[str]
    layers: list[int]
    weights: np.ndarray
    entropy: np.ndarray
    bounds: np.ndarray

    def shares(self) -> np.ndarray:
        """float32[layers, A, 4]: attention to each of SPANS; sums to 1."""
        return np.stack([self.weights[..., start:end].sum(axis=-1) for start, end in self.bounds], axis=-1)


@torch.inference_mode()
def sequence_attention(
    model,
    tokenizer,
    image_processor,
    image: Image.Image,
    text: str,
    *,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    max_new_tokens: int = 32,
    conv_mode: str | None = None,
) -> SequenceAttention:
    """Answer greedily, then run prompt and answer once more to read the attention.

    Args:
        model, tokenizer, image_processor, image, text, max_new_tokens, conv_mode: as in answer_question.
        layers: decoder layers, negative ones counted from the end; None: all.
        head: one head, from 0; None: the mean over heads.
    Raises:
        ValueError: for a layer, head or template that is not there, a text-only model, or an empty answer.
    """
    num_layers = model.config.num_hidden_layers
    layers = resolve_layers(range(num_layers) if layers is None else layers, num_layers)
    choose = over_heads(model, head)
    check_sees(model)
    said = answer_question(model, tokenizer, image_processor, image, text, max_new_tokens, conv_mode)
    merged = model.merge_inputs(said.sequence, images=said.images, image_sizes=said.image_sizes)
    length, num_new = merged.inputs_embeds.shape[1], len(said.tokens)

    def spread(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bits = torch.special.entr(weights).sum(dim=-1) / math.log(2)
        return choose(weights), choose(bits)

    kept = read_answer(model, merged, num_new, layers, torch.arange(length - 1), spread)
    weights, entropy = (torch.stack(parts).numpy() for parts in zip(*kept, strict=True))
    bounds = span_bounds(said.sequence[0].tolist(), length, num_new)
    return SequenceAttention(said.text, said.tokens, layers, weights, entropy, bounds)


def span_bounds(ids: Sequence[int], length: int, num_new: int) -> np.ndarray:
    """Where each of SPANS lies among all positions but the last.

    Args:
        ids: the prompt with one IMAGE_TOKEN_INDEX, and `num_new` answer tokens.
        length: positions, once the image's stand in its place.
    Returns:
        int[4, 2].
    """
    image = ids.index(IMAGE_TOKEN_INDEX)
    edges = [0, image, image + 1 + length - len(ids), length - num_new, length - 1]
    return np.stack([edges[:-1], edges[1:]], axis=1)
