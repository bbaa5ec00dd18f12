"""Which pixels of the original image a visual token covers.

All preprocessings scale and shift each axis separately. So position x of the original image lies at
x * scale + offset in the tower's input, which is a square or the tiles of a canvas. Positions are continuous:
pixel i covers [i, i + 1).
"""

# g: tokens along a tile's side; M': visual tokens of a prompt

from dataclasses import dataclass, replace

import numpy as np

from llava.errors import UserError
from llava.thin import resized_size
from llava.tiling import TILED


@dataclass(frozen=True)
class ImageMapping:
    """Maps an image of `width` x `height` pixels to rows x cols squares of `side` pixels; pairs are (x, y).

    In its methods, `grid` is g. Tokens are numbered row-major over the whole canvas, rows*g by cols*g.

    Args:
        scale: input pixels per image pixel.
        offset: input position of the image's upper left corner; negative if it was cropped away.
    """

    width: int
    height: int
    side: int
    scale: tuple[float, float]
    offset: tuple[float, float]
    rows: int = 1
    cols: int = 1

    def resized(self, width: int, height: int) -> "ImageMapping":
        """Return the mapping of the same image shown at another size."""
        scale = (self.scale[0] * self.width / width, self.scale[1] * self.height / height)
        return replace(self, width=width, height=height, scale=scale)

    def token_coordinates(self, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where pixel centres lie on a grid of tokens: (x float[width], y float[height]), in tokens
        from the left and from the top. No token covers a pixel below 0 or beyond the last token."""
        unit = self.side / grid
        x, y = (
            ((np.arange(length) + 0.5) * scale + offset) / unit
            for length, scale, offset in zip((self.width, self.height), self.scale, self.offset, strict=True)
        )
        return x, y

    def covered(self, grid: int) -> np.ndarray:
        """Return bool[height, width]: the pixels that a token covers."""
        x, y = self.token_coordinates(grid)
        in_rows, in_columns = (y >= 0) & (y < self.rows * grid), (x >= 0) & (x < self.cols * grid)
        return in_rows[:, None] & in_columns[None]

    def token_of_pixels(self, grid: int) -> np.ndarray:
        """Return int[height, width]: the token that covers each pixel, or -1 if none does."""
        x, y = (np.floor(axis).astype(int) for axis in self.token_coordinates(grid))
        return np.where(self.covered(grid), y[:, None] * self.cols * grid + x[None], -1)

    def token_boxes(self, grid: int) -> np.ndarray:
        """Return float[rows*g * cols*g, 4]: each token's (left, top, right, bottom) in image pixels, cut at
        the image's border. A token that covers only padding has no area."""
        lengths, counts = (self.width, self.height), (self.cols * grid, self.rows * grid)
        xs, ys = (
            np.clip((np.arange(count + 1) * self.side / grid - offset) / scale, 0, length)
            for length, count, scale, offset in zip(lengths, counts, self.scale, self.offset, strict=True)
        )
        left, top = np.tile(xs[:-1], counts[1]), np.repeat(ys[:-1], counts[0])
        right, bottom = np.tile(xs[1:], counts[1]), np.repeat(ys[1:], counts[0])
        return np.stack([left, top, right, bottom], axis=1)


@dataclass(frozen=True)
class TokenMap:
    """All visual tokens of an image, in the prompt's order.

    Args:
        mappings: one for each canvas: either the image, or both its tiles and the whole image.
        grid: g.
        order: int[M'], each token's number in the tower's order: canvas, tile, row, column. Some numbers may
            be missing, such as those of padding that is not put into the prompt.
    """

    mappings: tuple[ImageMapping, ...]
    grid: int
    order: np.ndarray

    def resized(self, width: int, height: int) -> "TokenMap":
        """Return the map of the same image shown at another size."""
        return replace(self, mappings=tuple(mapping.resized(width, height) for mapping in self.mappings))

    def boxes(self) -> np.ndarray:
        """Return float[M', 4]: each token's (left, top, right, bottom), as ImageMapping.token_boxes."""
        boxes = []
        for mapping in self.mappings:
            table = mapping.token_boxes(self.grid).reshape(
                mapping.rows, self.grid, mapping.cols, self.grid, 4
            )
            boxes.append(table.swapaxes(1, 2).reshape(-1, 4))
        return np.concatenate(boxes)[self.order]

    def tables(self, weights: np.ndarray) -> list[np.ndarray]:
        """Return float32[rows*g, cols*g] for each canvas: its tokens' weights, 0 where there is no token.

        Raises UserError if there is not exactly one weight for each token.
        """
        if len(weights) != len(self.order):
            raise UserError(
                f"expected a weight for each of {len(self.order)} visual tokens, got {len(weights)}."
            )
        areas = [mapping.rows * mapping.cols * self.grid**2 for mapping in self.mappings]
        values = np.zeros(sum(areas), np.float32)
        values[self.order] = weights
        tables = []
        for mapping, part in zip(self.mappings, np.split(values, np.cumsum(areas)[:-1]), strict=True):
            tiles = part.reshape(mapping.rows, mapping.cols, self.grid, self.grid)
            tables.append(tiles.swapaxes(1, 2).reshape(mapping.rows * self.grid, mapping.cols * self.grid))
        return tables


def token_map(model, size: tuple[int, int], image_processor, scale_factor: int | None = None) -> TokenMap:
    """Return the TokenMap of an image of (width, height) that is prepared as `model.config` says.

    Args:
        scale_factor: s, by default model.config.scale_factor.
    Raises:
        UserError: as image_mapping; or if a view's tokens do not form a grid over it.
    """
    grid, tiling, aspect_ratio = model.view_grid(scale_factor), model.tiling, model.config.image_aspect_ratio
    if aspect_ratio in TILED:
        mappings = tuple(
            ImageMapping(*size, tiling.side, canvas.scale, canvas.offset, canvas.rows, canvas.cols)
            for canvas in tiling.canvases(size)
        )
    else:
        mappings = (image_mapping(*size, image_processor, aspect_ratio),)
    layout = tiling.layout(size, grid * grid, tiling.num_tiles(size)).numpy()
    return TokenMap(mappings, grid, layout[layout >= 0])


def image_mapping(width: int, height: int, image_processor, aspect_ratio: str | None) -> ImageMapping:
    """Return how `process_images` maps an image of this size to one square for the tower.

    Args:
        width, height: size of the original image, pixels.
        image_processor: one of transformers' image processors, with `size`, and `crop_size` if it crops.
        aspect_ratio: "square" or "pad"; None means "square".
    Raises:
        UserError: for any other aspect ratio, or a processor whose output is not square.
    """
    if aspect_ratio not in (None, "square", "pad"):
        raise UserError(
            f"image_aspect_ratio must be square or pad, which use one square per image, got {aspect_ratio!r}."
        )
    pad_x = pad_y = 0
    full_width, full_height = width, height
    if aspect_ratio == "pad":
        full_width = full_height = max(width, height)
        pad_x, pad_y = (full_width - width) // 2, (full_height - height) // 2
    full = (full_width, full_height)
    new_width, new_height = resized_size(full, image_processor) or full
    out_width, out_height = new_width, new_height
    if getattr(image_processor, "do_center_crop", None):
        out_width, out_height = image_processor.crop_size["width"], image_processor.crop_size["height"]
    if out_width != out_height:
        raise UserError(
            f"a token map needs a square input; the image processor makes {out_width}x{out_height} pixels."
        )
    scale = (new_width / full_width, new_height / full_height)
    offset = (
        pad_x * scale[0] - _crop_start(new_width, out_width),
        pad_y * scale[1] - _crop_start(new_height, out_height),
    )
    return ImageMapping(width, height, out_width, scale, offset)


def _crop_start(length: int, crop: int) -> int:
    """Return where transformers' centre crop begins; below 0 if it pads."""
    return (length - crop) // 2
