"""Which pixels of the original image a visual token stands for.

Both preprocessings stretch and shift each axis by itself, so a position x of the original image lies at
x * scale + offset in the tower's square input. Positions are continuous: pixel i covers [i, i + 1).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageMapping:
    """From an image of `width` x `height` pixels to the tower's square of `side` pixels; pairs are (x, y).

    Args:
        scale: input pixels per image pixel.
        offset: input position of the image's upper left corner; negative where it was cropped away.
    """

    width: int
    height: int
    side: int
    scale: tuple[float, float]
    offset: tuple[float, float]

    def resized(self, width: int, height: int) -> "ImageMapping":
        """The mapping of the same image shown at another size."""
        scale = (self.scale[0] * self.width / width, self.scale[1] * self.height / height)
        return ImageMapping(width, height, self.side, scale, self.offset)

    def token_coordinates(self, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Where pixel centres lie on a grid of tokens: (x float[width], y float[height]), in tokens from the
        left and from the top; below 0 or from `grid` on, no token sees the pixel."""
        unit = self.side / grid
        x, y = (
            ((np.arange(length) + 0.5) * scale + offset) / unit
            for length, scale, offset in zip((self.width, self.height), self.scale, self.offset, strict=True)
        )
        return x, y

    def covered(self, grid: int) -> np.ndarray:
        """bool[height, width]: the pixels that some token sees."""
        x, y = self.token_coordinates(grid)
        return ((y >= 0) & (y < grid))[:, None] & ((x >= 0) & (x < grid))[None]

    def token_of_pixels(self, grid: int) -> np.ndarray:
        """int[height, width]: the token (row-major) that each pixel belongs to, -1 where none sees it."""
        x, y = (np.floor(axis).astype(int) for axis in self.token_coordinates(grid))
        return np.where(self.covered(grid), y[:, None] * grid + x[None], -1)

    def token_boxes(self, grid: int) -> np.ndarray:
        """float[grid * grid, 4]: each token's (left, top, right, bottom) in image pixels, cut at the image's
        border; a token of padding alone has no area."""
        edges = np.arange(grid + 1) * self.side / grid
        xs, ys = (
            np.clip((edges - offset) / scale, 0, length)
            for length, scale, offset in zip((self.width, self.height), self.scale, self.offset, strict=True)
        )
        left, top = np.tile(xs[:-1], grid), np.repeat(ys[:-1], grid)
        right, bottom = np.tile(xs[1:], grid), np.repeat(ys[1:], grid)
        return np.stack([left, top, right, bottom], axis=1)


def image_mapping(width: int, height: int, image_processor, aspect_ratio: str | None) -> ImageMapping:
    """How `process_images` brings an image of this size into the tower.

    Args:
        width, height: of the original image, pixels.
        image_processor: one of transformers', with `size`, and `crop_size` where it crops.
        aspect_ratio: "square" (None is that too) or "pad".
    Raises:
        ValueError: for any other aspect ratio, or a processor whose output is no square.
    """
    if aspect_ratio not in (None, "square", "pad"):
        raise ValueError(f"a token map needs image_aspect_ratio square or pad, got {aspect_ratio!r}.")
    pad_x = pad_y = 0
    full_width, full_height = width, height
    if aspect_ratio == "pad":
        full_width = full_height = max(width, height)
        pad_x, pad_y = (full_width - width) // 2, (full_height - height) // 2
    new_width, new_height = _resized(full_width, full_height, image_processor)
    out_width, out_height = new_width, new_height
    if getattr(image_processor, "do_center_crop", None):
        out_width, out_height = image_processor.crop_size["width"], image_processor.crop_size["height"]
    if out_width != out_height:
        raise ValueError(
            f"a token map needs a square input, the image processor makes {out_width}x{out_height} pixels."
        )
    scale = (new_width / full_width, new_height / full_height)
    offset = (
        pad_x * scale[0] - _crop_start(new_width, out_width),
        pad_y * scale[1] - _crop_start(new_height, out_height),
    )
    return ImageMapping(width, height, out_width, scale, offset)


def _resized(width: int, height: int, image_processor) -> tuple[int, int]:
    """(width, height) after the processor's resize."""
    if not getattr(image_processor, "do_resize", True):
        return width, height
    size = image_processor.size
    shortest = size.get("shortest_edge")
    if shortest is None:
        return size["width"], size["height"]
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _crop_start(length: int, crop: int) -> int:
    """Where transformers' centre crop begins; below 0 where it pads."""
    return (length - crop) // 2
