"""Make prompts from questions, batches from prompts, and answers from batches.

Images are read ahead, while the model works on an earlier batch. In the prompt ids each image is one
IMAGE_TOKEN_INDEX.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from PIL import Image

from llava.conversation import Conversation, question_prompt
from llava.decoding import Decoding, Stopping
from llava.errors import UserError
from llava.eval.meter import Meter
from llava.eval.records import images_of
from llava.mm_utils import (
    encode_prompts,
    get_aspect_ratio,
    image_size,
    left_pad,
    load_image,
    process_images,
)
from llava.tiling import TILED

READ_AHEAD = 4  # batches whose images are read, one thread each, while the model works on another batch


@dataclass(frozen=True, slots=True)
class Prompt:
    """One tokenized question; `length` is its number of positions in the language model, with its images."""

    question: dict
    input_ids: Sequence[int]
    length: int


class HasLength(Protocol):
    @property
    def length(self) -> int: ...


P = TypeVar("P", bound=HasLength)


def make_prompt(question: dict, model, tokenizer, template: Conversation, image_folder: Path) -> Prompt:
    """Tokenize one question; read only the sizes of its images, and only if they affect the prompt's length.

    Raises:
        UserError: if its text and its images disagree, or an image whose size matters cannot be read.
    """
    (prompt,) = PromptMaker(model, tokenizer, template, image_folder)([question])
    if isinstance(prompt, UserError):
        raise prompt
    return prompt


class PromptMaker:
    """Makes prompts from lists of questions; it tokenizes each distinct text once, in one call per list.

    Args:
        image_folder: where relative image paths start.
    """

    def __init__(self, model, tokenizer, template: Conversation, image_folder: Path):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.image_folder = image_folder
        # maps (text, number of images) to ids; packed, because a benchmark may have a hundred thousand texts
        self._input_ids: dict[tuple[str, int], array] = {}
        self._positions: dict[str, int] = {}  # by image path, because many questions may be about one image

    def __call__(self, questions: Sequence[dict]) -> list[Prompt | UserError]:
        """Return for each question its prompt, or the error that says why it cannot be asked."""
        texts: dict[tuple[str, int], str] = {}
        checked: list[UserError | tuple[dict, int]] = []
        for question in questions:
            try:
                texts |= self._new_text(question, texts)
                checked.append((question, self._num_visual(question)))
            except UserError as error:
                checked.append(error)
        for key, input_ids in zip(texts, encode_prompts(list(texts.values()), self.tokenizer), strict=True):
            self._input_ids[key] = array("i", input_ids)
        return [one if isinstance(one, UserError) else self._prompt(*one) for one in checked]

    def _new_text(self, question: dict, known: dict) -> dict[tuple[str, int], str]:
        """Return {(question text, number of images): prompt text}, or {} if that prompt is known already."""
        key = question["text"], len(images_of(question))
        if key[1] and self.model.get_vision_tower() is None:
            raise UserError("it has an image, but the model is text-only; give a multimodal --model-path")
        if key in known or key in self._input_ids:
            return {}
        wrap = getattr(self.model.config, "mm_use_im_start_end", False)
        return {key: question_prompt(*key, self.template, wrap)}

    def _num_visual(self, question: dict) -> int:
        """Return the number of positions that the question's images take."""
        images = images_of(question)
        if images and get_aspect_ratio(self.model.config) in TILED:
            return sum(map(self._positions_of, images))
        return len(images) * self.model.num_visual_tokens if images else 0

    def _positions_of(self, image: str | bytes) -> int:
        if image in self._positions:
            return self._positions[image]
        positions = self.model.visual_positions_of(image_size(_source(image, self.image_folder)))
        if isinstance(image, str):
            self._positions[image] = positions
        return positions

    def _prompt(self, question: dict, num_visual: int) -> Prompt:
        num_images = len(images_of(question))
        input_ids = self._input_ids[question["text"], num_images]
        return Prompt(question, input_ids, len(input_ids) - num_images + num_visual)


def split_batches(
    prompts: Sequence[P], batch_size: int | None, token_budget: int, max_new_tokens: int
) -> list[Sequence[P]]:
    """Split prompts, which are sorted by decreasing length, into batches.

    Args:
        prompts: the prompts, or other objects that have their `length`.
        batch_size: questions per batch; None: as many as fit into `token_budget`, but at least one.
        token_budget: prompt and answer tokens per batch, including padding and visual tokens.
    """
    batches: list[Sequence[P]] = []
    start = 0
    while start < len(prompts):
        longest = prompts[start].length + max_new_tokens
        size = batch_size or max(1, token_budget // longest)
        batches.append(prompts[start : start + size])
        start += size
    return batches


def answer_batches(
    model,
    tokenizer,
    image_processor,
    batches: Iterable[list[Prompt]],
    *,
    image_folder: str | Path,
    template: Conversation,
    decoding: Decoding,
    refuse: Callable[[dict, UserError], None],
    progress: Callable[[list[Prompt], float], None] = lambda batch, share: None,
) -> Iterator[tuple[dict, str]]:
    """Answer batch after batch, and yield each answer as soon as its batch is done.

    Greedy answers depend on the rest of the batch only by rounding, which has no visible effect in float32.

    Args:
        image_folder: where relative image paths start.
        refuse: called with a question whose image cannot be read, and with the reason; may raise.
        progress: called many times with the batch that the model works on, and with the fraction of it, 0 to
            1, that is done.
    Yields:
        (question, answer text), in the batches' order.
    Raises:
        UserError: if a batch does not fit into the device's memory.
    """
    stopping = Stopping(model, tokenizer, template)
    generation = {**decoding.kwargs(), **stopping.kwargs()}
    meter = Meter(model, decoding.max_new_tokens, lambda share: progress(good, share))

    def read(batch: list[Prompt]):
        return read_batch(batch, Path(image_folder), image_processor, model.config)

    for good, images, sizes, failed in _read_ahead(read, batches):
        for question, error in failed:
            refuse(question, error)
        if not good:
            continue
        # the ids stay on the CPU: the model plans there where the visual tokens go, and moves what it needs
        input_ids, attention_mask = left_pad(
            [prompt.input_ids for prompt in good], generation["pad_token_id"]
        )
        num_rows, length = len(good) * decoding.num_beams, good[0].length
        with torch.inference_mode(), _memory_advice(good), meter.batch(num_rows, length, images):
            output = model.generate(
                input_ids,
                attention_mask=attention_mask,
                images=_to(images, model.device),
                image_sizes=sizes,
                **generation,
            )
        meter.new_tokens = output.shape[1]
        for prompt, new_ids in zip(good, output.tolist(), strict=True):
            yield prompt.question, stopping.decode(new_ids)


def read_batch(batch: list[Prompt], image_folder: Path, image_processor, model_config) -> tuple:
    """Load a batch's images.

    Returns:
        (prompts whose images could be read, their images as process_images returns them or None, the (width,
        height) of each image, and (question, error) of each other prompt).
    """
    good, images, failed = [], [], []
    for prompt in batch:
        try:
            images += [open_image(source, image_folder) for source in images_of(prompt.question)]
            good.append(prompt)
        except UserError as error:
            failed.append((prompt.question, error))
    pixels = process_images(images, image_processor, model_config) if images else None
    return good, pixels, [image.size for image in images], failed


def open_image(image: str | bytes, folder: Path) -> Image.Image:
    """Load an image by its path below a folder, or from an encoded file's bytes; UserError if that fails."""
    return load_image(_source(image, folder))


def _source(image: str | bytes, folder: Path) -> Path | BytesIO:
    if isinstance(image, str):
        return folder / image
    file = BytesIO(image)
    file.name = "in the benchmark's data"  # the name in error messages
    return file


def _read_ahead(read: Callable, batches: Iterable) -> Iterator[tuple]:
    """Like `map(read, batches)`, but threads compute the next READ_AHEAD results in the meantime."""
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="images") as pool:
        waiting = deque()
        for batch in batches:
            waiting.append(pool.submit(read, batch))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _memory_advice(batch: list[Prompt]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{len(batch)} questions of up to {batch[0].length} tokens need more memory than the device has; "
            "lower --token_budget or --batch_size."
        ) from error


def _to(images, device):
    if isinstance(images, list):
        return [image.to(device) for image in images]
    return images if images is None else images.to(device)
