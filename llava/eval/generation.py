"""Questions to prompts, prompts to batches, batches to answers, their images read ahead of the model.

B questions of a batch, T prompt ids (one IMAGE_TOKEN_INDEX for each image), n images.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, question_prompt
from llava.decoding import Decoding, Stopping
from llava.errors import UserError
from llava.eval.records import images_of
from llava.mm_utils import (
    get_aspect_ratio,
    image_size,
    left_pad,
    load_image,
    process_images,
    tokenizer_image_token,
)
from llava.tiling import TILED

READ_AHEAD = 4  # batches whose images are being read, a thread each, while the model works on another


@dataclass(frozen=True)
class Prompt:
    """One question, tokenized; `length` counts the positions the language model sees, an image's included."""

    question: dict
    input_ids: list[int]
    length: int


def make_prompt(question: dict, model, tokenizer, template: Conversation, image_folder: Path) -> Prompt:
    """Tokenize one question; of its images the sizes alone are read, and these only where they matter.

    Raises:
        UserError: if its text and its image disagree, or there is no such image.
    """
    images = images_of(question)
    num_images = len(images)
    if num_images and model.get_vision_tower() is None:
        raise UserError("it has an image, but the model is text-only; pass a multimodal --model-path")
    wrap = getattr(model.config, "mm_use_im_start_end", False)
    input_ids = list(
        tokenizer_image_token(
            question_prompt(question["text"], num_images, template, wrap), tokenizer, IMAGE_TOKEN_INDEX
        )
    )
    if num_images and get_aspect_ratio(model.config) in TILED:
        sizes = (image_size(_source(image, image_folder)) for image in images)
        num_visual = sum(model.visual_positions_of(size) for size in sizes)
    else:
        num_visual = num_images and num_images * model.num_visual_tokens
    return Prompt(question, input_ids, len(input_ids) - num_images + num_visual)


def split_batches(
    prompts: list[Prompt], batch_size: int | None, token_budget: int, max_new_tokens: int
) -> list[list[Prompt]]:
    """Cut prompts sorted by falling length into batches.

    Args:
        batch_size: questions at a time; None: as many as `token_budget` holds.
        token_budget: prompt and answer tokens of a batch, padding and visual tokens included.
    """
    batches, start = [], 0
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
    batches: list[list[Prompt]],
    *,
    image_folder: str | Path,
    template: Conversation,
    decoding: Decoding,
    refuse: Callable[[dict, UserError], None],
) -> Iterator[tuple[dict, str]]:
    """Answer batch after batch, and give each answer as soon as its batch is done.

    Greedy answers do not depend on the batch but for rounding, of which float32 leaves nothing to see.

    Args:
        image_folder: where relative image paths start.
        refuse: called with a question whose image cannot be read and the reason; may raise.
    Yields:
        (question, answer text), in the batches' order.
    Raises:
        UserError: if a batch does not fit into the device's memory.
    """
    stopping = Stopping(model, tokenizer, template)
    generation = {**decoding.kwargs(), **stopping.kwargs()}

    def read(batch: list[Prompt]):
        return read_batch(batch, Path(image_folder), image_processor, model.config)

    for good, images, sizes, failed in _read_ahead(read, batches):
        for question, error in failed:
            refuse(question, error)
        if not good:
            continue
        # stays on the CPU: the model plans its merge there, and moves what it needs
        input_ids, attention_mask = left_pad(
            [prompt.input_ids for prompt in good], generation["pad_token_id"]
        )
        with torch.inference_mode(), _memory_advice(good):
            output = model.generate(
                input_ids,
                attention_mask=attention_mask,
                images=_to(images, model.device),
                image_sizes=sizes,
                **generation,
            )
        for prompt, new_ids in zip(good, output.tolist(), strict=True):
            yield prompt.question, stopping.decode(new_ids)


def read_batch(batch: list[Prompt], image_folder: Path, image_processor, model_config) -> tuple:
    """Load a batch's images.

    Returns:
        (prompts whose image could be read, images as process_images gives them or None, their (width,
        height), and (question, error) of the others).
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
    """An image by its path below a folder or by an encoded file's bytes; UserError if it cannot be read."""
    return load_image(_source(image, folder))


def _source(image: str | bytes, folder: Path) -> Path | BytesIO:
    if isinstance(image, str):
        return folder / image
    file = BytesIO(image)
    file.name = "in the benchmark's data"  # what an error calls it
    return file


def _read_ahead(read: Callable, batches: list) -> Iterator[tuple]:
    """`map(read, batches)` with the next READ_AHEAD results made in threads meanwhile."""
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
            f"{len(batch)} questions of up to {batch[0].length} tokens do not fit into the device's memory; "
            "lower --token_budget or --batch_size."
        ) from error


def _to(images, device):
    if isinstance(images, list):
        return [image.to(device) for image in images]
    return images if images is None else images.to(device)
