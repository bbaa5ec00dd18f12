"""Turns images into pixel tensors, and prompts with <image> into ids. Third-party evaluators import it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.errors import UserError

# the rest of the package and evaluators import the first three from here
from llava.pictures import image_size as image_size
from llava.pictures import load_image as load_image
from llava.pictures import load_image_from_base64 as load_image_from_base64
from llava.pictures import to_rgb
from llava.thin import resized_part
from llava.tiling import ASPECT_RATIOS, TILED, AnyRes, check_choice, parse_pinpoints, tiling_of

# evaluators import these two from here
from llava.tiling import get_anyres_image_grid_shape as get_anyres_image_grid_shape
from llava.tiling import select_best_resolution as select_best_resolution


def expand2square(image: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """Pad the shorter side, evenly on both ends, with `background_color` (RGB, 0 to 255)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def get_aspect_ratio(model_cfg) -> str:
    """`image_aspect_ratio` of a config, "square" where absent or None. Raises UserError if it is unknown."""
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None) or "square"
    check_choice("image_aspect_ratio", aspect_ratio, ASPECT_RATIOS)
    return aspect_ratio


def process_images(images: Sequence[Image.Image], image_processor, model_cfg) -> Tensor | list[Tensor]:
    """Turn images into the tower's pixel values.

    Args:
        images: PIL images of any size; transparency is blended with white, as in load_image.
        image_processor: a PIL image processor of transformers; `pad` uses its `image_mean`.
        model_cfg: any object; `image_aspect_ratio` is read from it (default square), and for slice and anyres
            what llava.tiling.tiling_of reads.
    Returns:
        square, pad: float[B, 3, H, W], or a list of float[3, H, W] where sizes differ.
        slice, anyres: a list of float[T, 3, H, W], the tiles of each image.
    Raises:
        UserError: for another `image_aspect_ratio`, or settings that it cannot use.
    """
    aspect_ratio = get_aspect_ratio(model_cfg)
    images = [to_rgb(image) for image in images]
    if aspect_ratio in TILED:
        tiling = tiling_of(model_cfg, input_side(image_processor))
        return [tiling.tiles(image, partial(normalised, image_processor)) for image in images]  # type: ignore[attr-defined]
    background = None
    if aspect_ratio == "pad":
        background = tuple(int(channel * 255) for channel in image_processor.image_mean)
    # one by one: a processor that keeps aspect ratios could not stack them
    pixels = [_pixels(image, image_processor, background) for image in images]  # type: ignore[arg-type]
    return torch.stack(pixels) if len({p.shape for p in pixels}) == 1 else pixels


def process_anyres_image(image: Image.Image, processor, grid_pinpoints: list | str) -> Tensor:
    """LLaVA-1.6's tiles of one image, the whole image first: float[T, 3, H, W]."""
    side = input_side(processor)
    tiling = AnyRes(side, parse_pinpoints(grid_pinpoints, side))
    return tiling.tiles(to_rgb(image), partial(normalised, processor))


def _pixels(image: Image.Image, image_processor, background: tuple[int, int, int] | None) -> Tensor:
    """The processor's float[3, H, W] of an RGB image, padded to a square where there is a background."""
    part = resized_part(image, image_processor, background)
    if part is not None:
        return image_processor(images=part, do_resize=False, return_tensors="pt")["pixel_values"][0]
    if background is not None:
        image = expand2square(image, background)
    return image_processor(images=image, return_tensors="pt")["pixel_values"][0]


def normalised(image_processor, image: Image.Image) -> Tensor:
    """The processor's float[3, H, W] of an image at its own size."""
    pixels = image_processor(images=image, do_resize=False, do_center_crop=False, return_tensors="pt")
    return pixels["pixel_values"][0]


def input_side(image_processor) -> int:
    """Side in pixels of the square that a processor makes. Raises UserError if it makes no square."""
    crops = getattr(image_processor, "do_center_crop", None)
    size = image_processor.crop_size if crops else image_processor.size
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise UserError(
            f"--image_aspect_ratio {', '.join(TILED)} and --jpeg_draft need an image processor whose output "
            f"is square, but this one's is {dict(size)}; set its crop_size (or size) to the tower's height "
            "and width."
        )
    return height


def encode_prompt(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, cuts: Sequence[int] = ()
) -> tuple[list[int], list[tuple[int, int]] | None]:
    """The only rule of tokenising prompts: split at <image>, tokenise each chunk by itself, keep one BOS.

    There is a BOS only if the tokenizer adds one to any text. One with ChatML's <|im_start|> as BOS does not.

    Args:
        prompt: a llava.conversation.MarkedPrompt is split only at its `marks`, any other string at every
            <image>.
        cuts: further positions to split at; no token crosses them.
    Returns:
        The ids, with `image_token_index` for each image; and each id's [start, end) in `prompt`, which is
        (-1, 0) for the BOS. A slow tokenizer knows no positions; then None is in their place.
    """
    has_offsets = getattr(tokenizer, "is_fast", False)
    marks = getattr(prompt, "marks", None)
    if marks is None:
        marks = [match.start() for match in re.finditer(re.escape(DEFAULT_IMAGE_TOKEN), prompt)]
    ends_of_marks = [mark + len(DEFAULT_IMAGE_TOKEN) for mark in marks]
    ids, spans = [], []
    for start, end in pairwise(sorted({0, len(prompt), *cuts, *marks, *ends_of_marks})):
        if start in marks:
            ids.append(image_token_index)
            spans.append((start, end))
            continue
        options = {"return_offsets_mapping": True} if has_offsets else {}
        encoding = tokenizer(prompt[start:end], add_special_tokens=False, **options)
        ids += encoding["input_ids"]
        if has_offsets:
            spans += [(start + a, start + b) for a, b in encoding["offset_mapping"]]
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("")["input_ids"][:1] == [bos] and ids[:1] != [bos]:
        ids, spans = [bos, *ids], [(-1, 0), *spans]
    return ids, spans if has_offsets else None


def encode_prompts(prompts: Sequence[str], tokenizer) -> list[list[int]]:
    """The ids that encode_prompt gives for each prompt, in a fraction of the time if there are many.

    Every chunk is tokenised once, all of them in one call.
    """
    known = _KnownChunks(tokenizer)
    for prompt in prompts:  # finds the chunks
        encode_prompt(prompt, known)
    known.tokenise_all()
    return [encode_prompt(prompt, known)[0] for prompt in prompts]


class _KnownChunks:
    """Replaces a tokenizer in encode_prompt, so that only encode_prompt defines the chunks of a prompt."""

    is_fast = False  # positions are not needed

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_token_id
        self.ids: dict[str, list[int]] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        if add_special_tokens:
            return {"input_ids": self._with_special_tokens(text)}
        return {"input_ids": self.ids.setdefault(text, [])}

    @cache  # noqa: B019
    def _with_special_tokens(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def tokenise_all(self) -> None:
        chunks = list(self.ids)
        if chunks:
            encoded = self.tokenizer(chunks, add_special_tokens=False)["input_ids"]
            self.ids = dict(zip(chunks, encoded, strict=True))


def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | Tensor:
    """Tokenise a prompt. Each <image> that is a placeholder of an image becomes `image_token_index`.

    Args:
        prompt: as encode_prompt takes it.
    Returns:
        list of T ids, or long[T] for return_tensors="pt".
    Raises:
        UserError: for any other `return_tensors`.
    """
    ids, _ = encode_prompt(prompt, tokenizer, image_token_index)
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise UserError(f"return_tensors must be 'pt' or None, got {return_tensors!r}.")
    return torch.tensor(ids, dtype=torch.long)


def left_pad(rows: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Pad rows of ids on the left to (input_ids long[B, T], attention_mask bool[B, T])."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, width - len(row) :] = torch.tensor(row)
        attention_mask[i, width - len(row) :] = True
    return input_ids, attention_mask


def get_model_name_from_path(model_path: str) -> str:
    """A mere label: the last folder's name, or for checkpoint-N the parent's name and checkpoint-N."""
    *parents, name = str(model_path).strip("/").split("/")
    return f"{parents[-1]}_{name}" if parents and name.startswith("checkpoint-") else name


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stop a row once its new text holds one of the keywords.

    Args:
        keywords: texts such as a conversation's `stop_str`.
        input_ids: the prompt, long[B, T]; generation that returns only new tokens is recognised.
    """

    def __init__(self, keywords: Sequence[str], tokenizer, input_ids: Tensor):
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.prompt_ids = input_ids
        # a token has at least one byte; one more token, as the first may begin before the keyword
        self.max_tokens = max((len(keyword.encode()) for keyword in self.keywords), default=0) + 1

    def __call__(self, output_ids: Tensor, scores: Tensor | None = None, **kwargs) -> Tensor:
        """bool[B]: which rows of output_ids long[B, T'] are done."""
        prompt_length = self.prompt_ids.shape[1]
        if torch.equal(output_ids[:, :prompt_length], self.prompt_ids.to(output_ids.device)):
            output_ids = output_ids[:, prompt_length:]
        texts = self.tokenizer.batch_decode(output_ids[:, -self.max_tokens :], skip_special_tokens=False)
        done = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)
