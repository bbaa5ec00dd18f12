"""Answer a question about an image and find which visual tokens each word of the answer attended to.

A: answer tokens; M': visual tokens in the prompt; T: prompt ids.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.conversation import question_prompt, template_of
from llava.decoding import Decoding
from llava.errors import UserError
from llava.mm_utils import process_images, tokenizer_image_token
from llava.visualization.attention import INFLUENCES, check_method, over_heads, resolve_layers, visual_columns
from llava.visualization.capture import Kept, Reduce, capture_attention
from llava.visualization.token_map import TokenMap, token_map


@dataclass(frozen=True)
class Question:
    """A question about an image, prepared as input for a model.

    Attributes:
        input_ids: long[1, T], the prompt with its IMAGE_TOKEN_INDEX.
        images, image_sizes: in the form that merge_inputs takes.
        merged: the result of merge_inputs for input_ids and images.
        stop_str: the template's closing text; "" or None if it has none.
    """

    input_ids: torch.Tensor
    images: list[torch.Tensor]
    image_sizes: list[tuple[int, int]]
    merged: Any
    stop_str: str | None


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the whole answer.
        tokens: the text that each token adds; "" if the token only adds a part of a character.
        words: the answer split at white space; `word_tokens` holds each word's indices into `tokens`.
        ids: long[A], the tokens' ids.
    """

    text: str
    tokens: list[str]
    words: list[str]
    word_tokens: list[list[int]]
    ids: torch.Tensor


@dataclass(frozen=True)
class AnswerAttention:
    """What a model answered, and the visual tokens that it attended to.

    Attributes:
        answer, tokens, words, word_tokens: as in Answer; `answer` is its text.
        layers: indices of decoder layers.
        weights: float32[layers, A, M'], the weight of each visual token, as attention_to_image returns it.
        mapping: maps visual tokens to image pixels.
        method: one of attention.METHODS.
    """

    answer: str
    tokens: list[str]
    words: list[str]
    word_tokens: list[list[int]]
    layers: list[int]
    weights: np.ndarray
    mapping: TokenMap
    method: str = "attention"

    def word_weights(self, layer: int) -> np.ndarray:
        """Return float32[words, M'] for one of `layers`: the mean over each word's tokens."""
        weights = self.weights[self.layers.index(layer)]
        return np.stack([weights[tokens].mean(axis=0) for tokens in self.word_tokens])

    def mean_weights(self, layer: int) -> np.ndarray:
        """Return float32[M'] for one of `layers`: the mean over the answer's tokens."""
        return self.weights[self.layers.index(layer)].mean(axis=0)


def image_attention(
    model,
    tokenizer,
    image_processor,
    image: Image.Image,
    text: str,
    *,
    layers: Sequence[int],
    head: int | None = None,
    method: str = "attention",
    max_new_tokens: int = 32,
    conv_mode: str | None = None,
    compiled: bool = False,
) -> AnswerAttention:
    """Answer greedily and compute the weight of each visual token for each token of the answer.

    Method attention reads the weights while the model answers; the other methods run afterwards.

    Args:
        model, tokenizer, image_processor, image, text, conv_mode: as in ask.
        layers: decoder layers; negative ones count from the end.
        head: one head, from 0, for method attention; None: the mean over heads.
        method: one of attention.METHODS.
        max_new_tokens: longest answer, tokens.
        compiled: as in answer; method attention reads each step of the decoding and ignores it.
    Raises:
        UserError: for a layer, head, method, template or image_aspect_ratio that does not exist, a text-only
            model, visual tokens that do not form a grid over the image, or an empty answer.
    """
    layers = resolve_layers(layers, model.config.num_hidden_layers)
    check_method(method, head)
    choose = over_heads(model, head)
    check_sees(model)
    mapping = token_map(model, image.size, image_processor)
    question = ask(model, tokenizer, image_processor, image, text, conv_mode)
    columns = visual_columns(question.merged)
    if method == "attention":
        said, rows = answer_watched(
            model, tokenizer, question, max_new_tokens, layers, lambda weights: choose(weights[..., columns])
        )
        weights = torch.stack([torch.cat(of_layer) for of_layer in rows])
    else:
        said = answer(model, tokenizer, question, max_new_tokens, compiled)
        merged = merged_with(model, question, said)
        weights = INFLUENCES[method](model, merged, said.ids, layers, columns)
    return AnswerAttention(
        said.text, said.tokens, said.words, said.word_tokens, layers, weights.cpu().numpy(), mapping, method
    )


def check_sees(model) -> None:
    """Raise a UserError if the model has no vision tower."""
    if model.get_vision_tower() is None:
        raise UserError("the model is text-only, so it has no visual tokens; give a multimodal --model_path.")


@torch.no_grad()
def ask(
    model, tokenizer, image_processor, image: Image.Image, text: str, conv_mode: str | None = None
) -> Question:
    """Prepare a question.

    Args:
        model, tokenizer, image_processor: as load_pretrained_model returns them.
        image: RGB.
        text: the question, without `<image>`.
        conv_mode: template name; None: the one that template_of chooses.
    Raises:
        UserError: for a template that does not exist.
    """
    template = template_of(model.config, conv_mode)
    prompt = question_prompt(text, 1, template, model.config.mm_use_im_start_end)
    input_ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None].to(model.device)  # type: ignore[call-overload]
    images = process_images([image], image_processor, model.config)
    images = [pixels.to(model.device) for pixels in images]
    merged = model.merge_inputs(input_ids, images=images, image_sizes=[image.size])
    return Question(input_ids, images, [image.size], merged, template.stop_str)


def answer(model, tokenizer, question: Question, max_new_tokens: int = 32, compiled: bool = False) -> Answer:
    """Answer greedily.

    Args:
        max_new_tokens: longest answer, tokens.
        compiled: decode with compiled graphs, as described in Decoding.
    Raises:
        UserError: for an empty answer.
    """
    stop = {"stop_strings": [question.stop_str], "tokenizer": tokenizer} if question.stop_str else {}
    new_ids = model.generate(
        inputs_embeds=question.merged.inputs_embeds,
        attention_mask=question.merged.attention_mask.long(),
        pad_token_id=tokenizer.pad_token_id,
        **Decoding(max_new_tokens=max_new_tokens, compiled=compiled).kwargs(),
        **stop,
    )
    text, spans = token_spans(new_ids[0].tolist(), tokenizer, question.stop_str)
    if not text.strip():
        raise UserError("the answer is empty, so there is no attention to show; ask another question.")
    words, word_tokens = group_words(text, spans)
    tokens = [text[start:end] for start, end in spans]
    return Answer(text.strip(), tokens, words, word_tokens, new_ids[0, : len(spans)])


def answer_watched(
    model, tokenizer, question: Question, max_new_tokens: int, layers: Sequence[int], reduce: Reduce[Kept]
) -> tuple[Answer, list[list[Kept]]]:
    """Answer greedily, and capture the attention of each layer.

    Returns:
        (answer, for each layer a list of what `reduce` returned when each token of the answer was chosen).
    """
    with capture_attention(model, layers, reduce) as captured:
        said = answer(model, tokenizer, question, max_new_tokens)
    return said, [captured[layer][: len(said.tokens)] for layer in layers]


@torch.no_grad()
def merged_with(model, question: Question, said: Answer):
    """Return merge_inputs' result for a question followed by its answer."""
    sequence = torch.cat([question.input_ids, said.ids[None]], dim=1)
    return model.merge_inputs(sequence, images=question.images, image_sizes=question.image_sizes)


def token_spans(ids: Sequence[int], tokenizer, stop_str: str | None) -> tuple[str, list[tuple[int, int]]]:
    """Return the answer that generated ids spell, and the characters that each id adds to it.

    Special tokens and the template's closing text end the answer. An id adds nothing if it only adds a part
    of a character that is still incomplete: its span is empty and lies where that character begins.

    Returns:
        (text, [(start, end)] for each id of the answer).
    """
    special = set(tokenizer.all_special_ids)
    ids = list(ids)
    ids = ids[: next((i for i, token in enumerate(ids) if token in special), len(ids))]
    prefixes = [tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False) for n in range(len(ids) + 1)]
    text = prefixes[-1]
    # An unfinished character is decoded as U+FFFD
    ends = [len(prefix.rstrip("\ufffd")) for prefix in prefixes[:-1]] + [len(text)]
    ends = np.maximum.accumulate(ends).tolist()
    if stop_str and stop_str in text:
        text = text[: text.index(stop_str)]
    spans = [(start, min(end, len(text))) for start, end in pairwise(ends)]
    return text, [span for span in spans if span[0] < len(text)]


def group_words(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[str], list[list[int]]]:
    """Return a text's words, split at white space, and the indices of the spans that overlap each word."""
    words, indices = [], []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        words.append(match.group())
        # An empty span counts as the character that follows it
        indices.append(
            [i for i, (left, right) in enumerate(spans) if left < end and max(right, left + 1) > start]
        )
    return words, indices
