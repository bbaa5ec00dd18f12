"""The one answer loop: batched under a token budget, images read ahead of the model.

B questions of a batch, T prompt ids (one IMAGE_TOKEN_INDEX for each image), n images.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from llava.constants import (
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, question_prompt, template_named
from llava.eval import TOKEN_BUDGET
from llava.mm_utils import image_size, load_image, process_images, tokenizer_image_token

READ_AHEAD = 2  # batches whose images are being read while the model works on another


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen.

    Args:
        temperature: 0 takes the likeliest token; above 0 samples, and answers differ from run to run.
        top_p: sample from the likeliest tokens of this total probability, 0..1; None: from all.
        num_beams: beams of a beam search; 1: none.
        max_new_tokens: longest answer, tokens.
    """

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"--temperature must be 0 (greedy) or more, got {self.temperature}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.num_beams < 1 or self.max_new_tokens < 1:
            raise ValueError(
                "--num_beams and --max_new_tokens must be at least 1, got "
                f"{self.num_beams} and {self.max_new_tokens}."
            )

    def kwargs(self) -> dict:
        """As `generate` takes it; the model folder's own sampling defaults are switched off."""
        kwargs = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        if self.temperature == 0:
            return {**kwargs, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            **kwargs,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p or 1.0,
            "top_k": 0,
        }


@dataclass(frozen=True)
class Prompt:
    """One question, tokenized; `length` counts the positions the language model sees, an image's included."""

    question: dict
    input_ids: list[int]
    length: int


class Stopping:
    """Where an answer ends: at an end-of-sequence id of the model, or at the template's own closing text."""

    def __init__(self, model, tokenizer, template: Conversation):
        self.tokenizer = tokenizer
        self.text = template.stop_str
        own = model.generation_config.eos_token_id
        ids = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
        # an added token is never spelt otherwise; ordinary text may be cut into tokens in several ways
        closing = tokenizer.get_added_vocab().get(self.text)
        self.eos_token_ids = sorted({*ids, closing} - {None})
        self._by_text = bool(self.text) and closing is None and self.text != tokenizer.eos_token

    def kwargs(self) -> dict:
        """As `generate` takes it."""
        pad = self.tokenizer.pad_token_id
        kwargs = {
            "eos_token_id": self.eos_token_ids,
            "pad_token_id": self.eos_token_ids[0] if pad is None else pad,
        }
        if self._by_text:
            kwargs |= {"stop_strings": [self.text], "tokenizer": self.tokenizer}
        return kwargs

    def trim(self, new_ids: list[int]) -> list[int]:
        """The answer's own ids: those before the first end-of-sequence id."""
        end = next((i for i, token in enumerate(new_ids) if token in self.eos_token_ids), len(new_ids))
        return new_ids[:end]

    def decode(self, new_ids: list[int]) -> str:
        """The answer's text, its end mark and outer white space removed."""
        text = self.tokenizer.decode(self.trim(new_ids), skip_special_tokens=True)
        return (text.split(self.text)[0] if self.text else text).strip()


def answer_questions(
    model,
    tokenizer,
    image_processor,
    questions: Iterable[dict],
    *,
    image_folder: str | Path,
    conv_mode: str,
    decoding: Decoding = Decoding(),
    batch_size: int | None = None,
    token_budget: int = TOKEN_BUDGET,
    skipped: list[tuple[dict, str]] | None = None,
) -> Iterator[tuple[dict, str]]:
    """Answer questions, longest prompts first, and give each as soon as its batch is done.

    Greedy answers do not depend on the batch size but for rounding, of which float32 leaves nothing to see.

    Args:
        questions: rows {"question_id", "text", "image"?}; the text is asked as it stands.
        image_folder: where relative image paths start.
        conv_mode: name of a conversation template.
        batch_size: questions at a time; None: as many as `token_budget` holds.
        token_budget: prompt and answer tokens of a batch, padding and visual tokens included.
        skipped: None: a question that cannot be asked raises; a list: it goes there with its reason.
    Yields:
        (question, answer text), in asking order.
    Raises:
        ValueError: for an unknown template, or a question that cannot be asked (no image, a corrupt one).
    """
    template = template_named(conv_mode)
    stopping = Stopping(model, tokenizer, template)
    prompts = []
    for question in questions:
        try:
            prompts.append(make_prompt(question, model, tokenizer, template, Path(image_folder)))
        except ValueError as error:
            _refuse(question, error, skipped)
    prompts.sort(key=lambda prompt: -prompt.length)  # stable; what is too large for the memory fails at once
    batches = split_batches(prompts, batch_size, token_budget, decoding.max_new_tokens)

    def read(batch: list[Prompt]):
        return read_batch(batch, Path(image_folder), image_processor, model.config)

    generation = {**decoding.kwargs(), **stopping.kwargs()}
    for good, images, sizes, failed in _read_ahead(read, batches):
        for question, error in failed:
            _refuse(question, error, skipped)
        if not good:
            continue
        input_ids, attention_mask = left_pad(
            [prompt.input_ids for prompt in good], generation["pad_token_id"]
        )
        with torch.inference_mode():
            output = model.generate(
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                images=_to(images, model.device),
                image_sizes=sizes,
                **generation,
            )
        for prompt, new_ids in zip(good, output.tolist(), strict=True):
            yield prompt.question, stopping.decode(new_ids)


def make_prompt(question: dict, model, tokenizer, template: Conversation, image_folder: Path) -> Prompt:
    """Tokenize one question; of its image the size alone is read.

    Raises:
        ValueError: if its text and its image disagree, or there is no such image.
    """
    num_images = 1 if question.get("image") else 0
    if num_images and model.get_vision_tower() is None:
        raise ValueError("it has an image, but the model is text-only; pass a multimodal --model-path")
    wrap = getattr(model.config, "mm_use_im_start_end", False)
    input_ids = list(
        tokenizer_image_token(
            question_prompt(question["text"], num_images, template, wrap), tokenizer, IMAGE_TOKEN_INDEX
        )
    )
    num_visual = model.visual_positions_of(image_size(image_folder / question["image"])) if num_images else 0
    return Prompt(question, input_ids, len(input_ids) - num_images + num_visual)


def split_batches(
    prompts: list[Prompt], batch_size: int | None, token_budget: int, max_new_tokens: int
) -> list[list[Prompt]]:
    """Cut prompts sorted by falling length into batches of `batch_size`, or as large as the budget holds."""
    batches, start = [], 0
    while start < len(prompts):
        longest = prompts[start].length + max_new_tokens
        size = batch_size or max(1, token_budget // longest)
        batches.append(prompts[start : start + size])
        start += size
    return batches


def left_pad(rows: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids to (input_ids long[B, T], attention_mask bool[B, T]), all ending at the same place."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row) :] = torch.tensor(row)
        attention_mask[i, width - len(row) :] = True
    return input_ids, attention_mask


def read_batch(batch: list[Prompt], image_folder: Path, image_processor, model_config) -> tuple:
    """Load a batch's images.

    Returns:
        (prompts whose image could be read, images as process_images gives them or None, their (width,
        height), and (question, error) of the others).
    """
    good, images, failed = [], [], []
    for prompt in batch:
        try:
            if prompt.question.get("image"):
                images.append(load_image(image_folder / prompt.question["image"]))
            good.append(prompt)
        except ValueError as error:
            failed.append((prompt.question, error))
    pixels = process_images(images, image_processor, model_config) if images else None
    return good, pixels, [image.size for image in images], failed


def _read_ahead(read, batches: list) -> Iterator[tuple]:
    """`map(read, batches)` with the next READ_AHEAD results made in threads meanwhile."""
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="images") as pool:
        waiting = deque()
        for batch in batches:
            waiting.append(pool.submit(read, batch))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _refuse(question: dict, error: ValueError, skipped: list | None) -> None:
    if skipped is None:
        raise ValueError(
            f"question {question['question_id']}: {error} (or pass --on_bad_record skip)"
        ) from error
    skipped.append((question, str(error)))


def _to(images, device):
    if isinstance(images, list):
        return [image.to(device) for image in images]
    return images if images is None else images.to(device)
