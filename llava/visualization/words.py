"""The attention of an answer's words to all pictures of its prompt, for the web page.

L: decoder layers; W: words of the answer; M': visual tokens of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from llava.errors import UserError
from llava.visualization.answer import group_words, token_spans
from llava.visualization.attention import attention_to_image
from llava.visualization.token_map import TokenMap, token_map

PICTURE_SIDE = 672  # longest side of a picture that is drawn, pixels


@dataclass(frozen=True)
class WordAttention:
    """The attention of an answer's words to the visual tokens, as shares: a row over all positions sums to 1.

    Attributes:
        words: the answer split at white space.
        weights: float32[L, W, M'], means over each word's tokens.
        mean: float32[L, M'], means over the answer's tokens.
        mappings: one for each picture, in the prompt's order.
    """

    words: list[str]
    weights: np.ndarray
    mean: np.ndarray
    mappings: list[TokenMap]

    def row(self, layer: int, word: int | None) -> np.ndarray:
        """Return float32[M'] of a word, or the mean over the answer if `word` is None."""
        return self.mean[layer] if word is None else self.weights[layer, word]

    def brightest(self, layer: int) -> float:
        """Return the share of a visual token shown at full brightness; the same for all words of a layer."""
        return float(np.percentile(self.weights[layer], 99.5))


def answer_words(
    tokenizer, new_ids: Sequence[int], stop_str: str | None
) -> tuple[list[str], list[list[int]]]:
    """Return an answer's words, and the indices of each word's tokens in `new_ids`.

    Args:
        stop_str: the template's closing text, which ends the answer.
    """
    return group_words(*token_spans(new_ids, tokenizer, stop_str))


def word_attention(
    model,
    tokenizer,
    image_processor,
    input_ids: torch.Tensor,
    new_ids: Sequence[int],
    images: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    *,
    stop_str: str | None = None,
    scale_factor: int | None = None,
) -> WordAttention:
    """Run a prompt and its answer once more and read the attention of every layer, the mean over its heads.

    Args:
        model, tokenizer, image_processor: as load_pretrained_model returns them.
        input_ids: long[1, T], the prompt with its IMAGE_TOKEN_INDEX.
        new_ids: the answer's ids without its end mark.
        images, image_sizes: those of the prompt, in the form that the model takes.
        stop_str: as in answer_words.
        scale_factor: s, by default model.config.scale_factor.
    Raises:
        UserError: if there is no picture or no word, or a picture's tokens do not form a grid over it.
    """
    if not images:
        raise UserError("there is no picture up to this answer, so its words attend to none.")
    words, word_tokens = answer_words(tokenizer, new_ids, stop_str)
    if not words:
        raise UserError("the answer has no words, so there is no attention to show.")
    mappings = [token_map(model, size, image_processor, scale_factor) for size in image_sizes]
    num_new = max(tokens[-1] for tokens in word_tokens) + 1
    sequence = torch.cat([input_ids, torch.tensor([list(new_ids[:num_new])])], dim=1)
    layers = range(model.config.num_hidden_layers)
    weights = attention_to_image(
        model, sequence, num_new, images, image_sizes, layers, scale_factor=scale_factor
    ).numpy()
    of_words = np.stack([weights[:, tokens].mean(axis=1) for tokens in word_tokens], axis=1)
    return WordAttention(words, of_words, weights.mean(axis=1), mappings)


def draw_word(
    attention: WordAttention, images: Sequence[Image.Image], layer: int, word: int | None
) -> list[np.ndarray]:
    """Draw the pictures of a prompt, brighter where one word attends. Their own colours stay recognisable.

    Args:
        images: RGB, those of `attention.mappings`.
        layer: from 0; negative ones count from the end.
        word: index into `attention.words`; None: the mean over the answer.
    Returns:
        uint8[H, W, 3] for each picture, its longest side at most PICTURE_SIDE.
    """
    from llava.visualization.plots import light_up, paint_tokens

    ends = np.cumsum([len(mapping.order) for mapping in attention.mappings])
    parts = np.split(attention.row(layer, word), ends[:-1])
    drawn = []
    for image, mapping, part in zip(images, attention.mappings, parts, strict=True):
        scale = PICTURE_SIDE / max(image.size)
        shown = image.resize([max(1, round(scale * side)) for side in image.size])
        heat = paint_tokens(part, mapping.resized(*shown.size), smooth=False)
        drawn.append(light_up(np.asarray(shown), heat, attention.brightest(layer)))
    return drawn
