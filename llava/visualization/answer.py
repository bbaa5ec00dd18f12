"""Answer a question about an image and find where each word of the answer looked.

A answer tokens, M' visual tokens in the prompt, T prompt ids.
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
    """A question about an image as a model takes it.

    Attributes:
        input_ids: long[1, T], the prompt with its IMAGE_TOKEN_INDEX.
        images, image_sizes: as merge_inputs takes them.
        merged: its result for them.
        stop_str: the template's closing text, "" or None without one.
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
        tokens: its tokens as text; a piece of a character is "".
        words: split at white space; `word_tokens` holds each word's indices into `tokens`.
        ids: long[A].
    """

    text: str
    tokens: list[str]
    words: list[str]
    word_tokens: list[list[int]]
    ids: torch.Tensor


@dataclass(frozen=True)
class AnswerAttention:
    """What a model answered, and where it looked meanwhile.

    Attributes:
        answer, tokens, words, word_tokens: as in Answer, whose text is `answer`.
        layers: indices of decoder layers.
        weights: float32[layers, A, M'], what each visual token got, as attention_to_image gives it.
        mapping: visual tokens to image pixels.
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
        """float32[words, M'] of one of `layers`: the mean over each word's tokens."""
        weights = self.weights[self.layers.index(layer)]
        return np.stack([weights[tokens].mean(axis=0) for tokens in self.word_tokens])

    def mean_weights(self, layer: int) -> np.ndarray:
        """float32[M'] of one of `layers`: the mean over the answer's tokens."""
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
    """Answer greedily and read where each token looked: attention meanwhile, other methods afterwards.

    Args:
        model, tokenizer, image_processor, image, text, conv_mode: as in ask.
        layers: decoder layers, negative ones counted from the end.
        head: one head, from 0, for method attention; None: the mean over heads.
        method: one of attention.METHODS.
        max_new_tokens: longest answer, tokens.
        compiled: as in answer; method attention reads each step of the decoding and does without.
    Raises:
        UserError: for a layer, head, method, template or image_aspect_ratio that is not there, a text-only
            model, visual tokens that are no grid of the image, or an empty answer.
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
    """Refuse, with a UserError, a model without a vision tower."""
    if model.get_vision_tower() is None:
        raise UserError("the model is text-only and looks at no image; pass a multimodal --model_path.")


@torch.no_grad()
def ask(
    model, tokenizer, image_processor, image: Image.Image, text: str, conv_mode: str | None = None
) -> Question:
    """Prepare a question.

    Args:
        model, tokenizer, image_processor: as load_pretrained_model gives them.
        image: RGB.
        text: the question, without `<image>`.
        conv_mode: template name; None: as template_of.
    Raises:
        UserError: for a template that is not there.
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
        compiled: decode by compiled graphs, as Decoding says.
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
        raise UserError("the model answered nothing, so no word looked anywhere; ask otherwise.")
    words, word_tokens = group_words(text, spans)
    tokens = [text[start:end] for start, end in spans]
    return Answer(text.strip(), tokens, words, word_tokens, new_ids[0, : len(spans)])


def answer_watched(
    model, tokenizer, question: Question, max_new_tokens: int, layers: Sequence[int], reduce: Reduce[Kept]
) -> tuple[Answer, list[list[Kept]]]:
    """As answer, and of each layer what `reduce` gave for each token of the answer when it was chosen."""
    with capture_attention(model, layers, reduce) as captured:
        said = answer(model, tokenizer, question, max_new_tokens)
    return said, [captured[layer][: len(said.tokens)] for layer in layers]


@torch.no_grad()
def merged_with(model, question: Question, said: Answer):
    """merge_inputs' result for a question and its answer."""
    sequence = torch.cat([question.input_ids, said.ids[None]], dim=1)
    return model.merge_inputs(sequence, images=question.images, image_sizes=question.image_sizes)


def token_spans(ids: Sequence[int], tokenizer, stop_str: str | None) -> tuple[str, list[tuple[int, int]]]:
    """The answer that generated ids spell, and the characters of it that each id adds.

    Special tokens and the template's closing text end the answer. An id that holds only a part of a character
    adds nothing: its span is empty, at the place of that character.

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
    """Words of a text, split at white space, and the indices of the spans that touch each of them."""
    words, indices = [], []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        words.append(match.group())
        # an empty span counts as the character it stands before
        indices.append(
            [i for i, (left, right) in enumerate(spans) if left < end and max(right, left + 1) > start]
        )
    return words, indices
