"""How an answer's attention is spread over the whole sequence: system prompt, image, question, answer.

A: answer tokens; T': positions of prompt and answer without the last, to which no answer token attends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IMAGE_TOKEN_INDEX
from llava.visualization.answer import answer_watched, ask, check_sees
from llava.visualization.attention import over_heads, resolve_layers

SPANS = ("system", "image", "question", "answer")


@dataclass(frozen=True)
class SequenceAttention:
    """What a model answered, and its attention over the sequence while it answered.

    Attributes:
        answer: the whole text.
        tokens: its tokens as text.
        layers: indices of decoder layers.
        weights: float32[layers, A, T'], shares of attention; a row sums to 1.
        entropy: float32[layers, A], bits; computed for each head, then the mean over heads or the chosen one.
        bounds: int[4, 2], where each of SPANS begins and ends. `system` is everything before the image.
            `image` is its tokens with the separators of tiles. `question` is what follows up to the answer,
            including the template's words.
    """

    answer: str
    tokens: list[str]
    layers: list[int]
    weights: np.ndarray
    entropy: np.ndarray
    bounds: np.ndarray

    def shares(self) -> np.ndarray:
        """Return float32[layers, A, 4]: attention to each of SPANS; the four sum to 1."""
        return np.stack([self.weights[..., start:end].sum(axis=-1) for start, end in self.bounds], axis=-1)


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
    """Answer greedily and keep the row of attention by which each token was chosen.

    Args:
        model, tokenizer, image_processor, image, text, conv_mode: as in answer.ask.
        layers: decoder layers; negative ones count from the end; None: all.
        head: one head, from 0; None: the mean over heads.
        max_new_tokens: longest answer, tokens.
    Raises:
        UserError: for a layer, head or template that does not exist, a text-only model, or an empty answer.
    """
    num_layers = model.config.num_hidden_layers
    layers = resolve_layers(range(num_layers) if layers is None else layers, num_layers)
    choose = over_heads(model, head)
    check_sees(model)
    question = ask(model, tokenizer, image_processor, image, text, conv_mode)

    def spread(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bits = torch.special.entr(weights).sum(dim=-1) / math.log(2)
        return choose(weights)[0].cpu(), choose(bits)

    said, kept = answer_watched(model, tokenizer, question, max_new_tokens, layers, spread)
    # A row ends before its token, because later positions did not exist yet; the rest is padded with 0
    weights = [pad_sequence([row for row, _ in of_layer], batch_first=True) for of_layer in kept]
    entropy = [torch.cat([bits for _, bits in of_layer]) for of_layer in kept]
    num_new = len(said.tokens)
    length = question.merged.inputs_embeds.shape[1] + num_new
    ids = [*question.input_ids[0].tolist(), *said.ids.tolist()]
    return SequenceAttention(
        said.text,
        said.tokens,
        layers,
        torch.stack(weights).numpy(),
        torch.stack(entropy).cpu().numpy(),
        span_bounds(ids, length, num_new),
    )


def span_bounds(ids: Sequence[int], length: int, num_new: int) -> np.ndarray:
    """Return where each of SPANS begins and ends; the last position is left out.

    Args:
        ids: the prompt with one IMAGE_TOKEN_INDEX, and `num_new` answer tokens.
        length: the number of positions once the image's positions replace IMAGE_TOKEN_INDEX.
    Returns:
        int[4, 2].
    """
    image = ids.index(IMAGE_TOKEN_INDEX)
    edges = [0, image, image + 1 + length - len(ids), length - num_new, length - 1]
    return np.stack([edges[:-1], edges[1:]], axis=1)
