"""High resolution: how an image is cut into tiles, what each tile shows, and how a prompt orders the tokens.

Only geometry: no weights, no vocabulary. Sizes and positions are (width, height) and (x, y) in pixels.
"""

# S side of a tile, the tower's input; T tiles of an image, row-major; M tokens a tile, g = sqrt(M);
# L positions an image takes in the prompt

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava.errors import UserError

ASPECT_RATIOS = ("square", "pad", "slice", "anyres")
TILED = ("slice", "anyres")
PATCH_NUMS = (9, 16, 25)
PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")

COLUMN_END, ROW_END = -1, -2  # separators in a layout: between tiles, and after a row

# (rows, columns) in the published order: the first of equals wins. --patch_num limits rows * columns.
# fmt: off
SLICE_GRIDS = (
    (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 4), (4, 1), (1, 5), (5, 1), (1, 6), (6, 1), (2, 3),
    (3, 2), (1, 7), (7, 1), (4, 2), (2, 4), (1, 8), (8, 1), (3, 3), (1, 9), (9, 1), (2, 5), (5, 2), (2, 6),
    (6, 2), (3, 4), (4, 3), (2, 7), (7, 2), (3, 5), (5, 3), (2, 8), (8, 2), (4, 4), (3, 6), (6, 3), (2, 9),
    (9, 2), (4, 5), (5, 4), (2, 10), (10, 2), (3, 7), (7, 3), (11, 2), (2, 11), (4, 6), (6, 4), (12, 2),
    (2, 12), (3, 8), (8, 3), (5, 5),
)
# fmt: on
ANYRES_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # (columns, rows) of LLaVA-1.6

Size = tuple[int, int]  # width and height


def check_choice(flag: str, value: object, choices: Sequence) -> None:
    """Raises UserError, in the flag's own spelling, if `value` is none of the choices."""
    if value not in choices:
        raise UserError(f"--{flag} must be one of {', '.join(map(str, choices))}, got {value!r}.")


@dataclass(frozen=True)
class Canvas:
    """The rows x cols tiles in which the tower gets an image at one scale.

    A position in the image is at position * scale + offset on the canvas, separately for each axis.
    """

    rows: int
    cols: int
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class WholeImage:
    """square and pad: one tile and no separator."""

    max_tiles = 1  # of an image
    needs_grid = False  # whether the M tokens of a tile must be a g x g grid of it
    learns_row_end = False  # whether ROW_END is model.image_newline; otherwise it is a text token

    def num_tiles(self, size: Size) -> int:
        return 1

    def layout(self, size: Size | None, num_tokens: int, num_tiles: int) -> Tensor:
        """The order of an image's tokens in the prompt.

        Args:
            size: size of the original image; None if it is unknown.
            num_tokens: M.
            num_tiles: T, the number of tiles that were given.
        Returns:
            long[L]: indices of tokens, from 0 to T*M - 1, and COLUMN_END and ROW_END.
        Raises:
            UserError: if an image of that size does not have T tiles, or the size is needed and unknown.
        """
        if num_tiles != 1:
            raise UserError(
                f"an image came as {num_tiles} tiles, but --image_aspect_ratio square and pad make one; set "
                "slice or anyres in the model's config, or prepare them with process_images and that config."
            )
        return torch.arange(num_tokens)


class Tiling(WholeImage):
    """The base class of slice and anyres."""

    def canvases(self, size: Size) -> tuple[Canvas, ...]:
        """The canvases of an image of that size, in the order of their tiles."""
        raise NotImplementedError

    def tiles(self, image: Image.Image, normalise: Callable[[Image.Image], Tensor]) -> Tensor:
        """Cut an image into tiles.

        Args:
            image: RGB.
            normalise: turns an image into float[3, H, W] of its own size.
        Returns:
            float[T, 3, S, S].
        """
        raise NotImplementedError

    def num_tiles(self, size: Size) -> int:
        return sum(canvas.rows * canvas.cols for canvas in self.canvases(size))

    def _checked(self, size: Size | None, num_tiles: int) -> Size:
        if size is None:
            raise UserError(
                "image_sizes is missing: the sizes of the original images decide how tiles are joined; pass "
                "image_sizes=[image.size, ...] together with images."
            )
        if num_tiles != self.num_tiles(size):
            raise UserError(
                f"an image of {size[0]}x{size[1]} pixels came as {num_tiles} tile(s), but {self} makes "
                f"{self.num_tiles(size)}; prepare it with process_images and the model's own config."
            )
        return size


@dataclass(frozen=True)
class Slice(Tiling):
    """TokenPacker-HD's tiles (Li et al. 2024, "TokenPacker: Efficient Visual Projector for Multimodal LLM").

    The image is scaled to fill the best grid from its upper left corner. If the grid has more than one tile,
    the canvas, shrunk to one tile, follows as the last.

    Args:
        side: S.
        patch_num: the largest number of tiles in a grid.
    """

    side: int
    patch_num: int = PATCH_NUMS[0]

    def __post_init__(self):
        check_choice("patch_num", self.patch_num, PATCH_NUMS)

    @property
    def max_tiles(self) -> int:  # type: ignore[override]
        return self.patch_num + 1

    def grid(self, size: Size) -> tuple[int, int]:
        """(rows, columns) of the first grid with the highest score.

        The score is the share of the grid that the image fills, plus a tenth of the intersection over union
        of the grid and the image enlarged by 1.4.
        """
        grids = [grid for grid in SLICE_GRIDS if math.prod(grid) <= self.patch_num]
        return max(grids, key=lambda grid: self._score(size, grid))

    def _score(self, size: Size, grid: tuple[int, int]) -> float:
        width, height = grid[1] * self.side, grid[0] * self.side
        enlarged_width, enlarged_height = 1.4 * size[0], 1.4 * size[1]
        common = min(width, enlarged_width) * min(height, enlarged_height)
        union = width * height + enlarged_width * enlarged_height - common
        return math.prod(fitted(size, (width, height))) / (width * height) + 0.1 * common / union

    def canvases(self, size: Size) -> tuple[Canvas, ...]:
        rows, cols = self.grid(size)
        full = (cols * self.side, rows * self.side)
        scale = _ratio(fitted(size, full), size)
        canvas = Canvas(rows, cols, scale)
        if rows * cols == 1:
            return (canvas,)
        shrink = _ratio(fitted(size, (self.side, self.side)), full)
        return canvas, Canvas(1, 1, (scale[0] * shrink[0], scale[1] * shrink[1]))

    def tiles(self, image: Image.Image, normalise: Callable[[Image.Image], Tensor]) -> Tensor:
        rows, cols = self.grid(image.size)
        canvas = laid_out(normalise(image), image.size, (cols * self.side, rows * self.side))
        tiles = canvas.unflatten(1, (rows, -1)).unflatten(3, (cols, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        if rows * cols == 1:
            return tiles
        return torch.cat([tiles, laid_out(canvas, image.size, (self.side, self.side))[None]])

    def layout(self, size: Size | None, num_tokens: int, num_tiles: int) -> Tensor:
        _, cols = self.grid(self._checked(size, num_tiles))
        ends = torch.full((num_tiles, 1), COLUMN_END)
        ends[cols - 1 :: cols] = ROW_END
        ends[-1] = ROW_END  # the thumbnail, or the only tile
        return torch.cat([torch.arange(num_tiles * num_tokens).view(num_tiles, -1), ends], dim=1).flatten()


@dataclass(frozen=True)
class AnyRes(Tiling):
    """LLaVA-1.6's tiles (Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge").

    The first tile is the whole image, stretched. The others are cut from the image on black, in the middle of
    the resolution that fits it best.

    Args:
        side: S.
        resolutions: (width, height), multiples of S.
        merge_type: flat: tile after tile; spatial: the tiles' grids joined to one, row-major; spatial_unpad:
            the same without padding, and with model.image_newline after each row.
    """

    side: int
    resolutions: tuple[Size, ...]
    merge_type: str = PATCH_MERGE_TYPES[0]

    def __post_init__(self):
        check_choice("mm_patch_merge_type", self.merge_type, PATCH_MERGE_TYPES)

    @property
    def max_tiles(self) -> int:  # type: ignore[override]
        return 1 + max(width * height for width, height in self.resolutions) // self.side**2

    @property
    def needs_grid(self) -> bool:  # type: ignore[override]
        return self.merge_type != "flat"

    @property
    def learns_row_end(self) -> bool:  # type: ignore[override]
        return self.merge_type == "spatial_unpad"

    def _resized(self, size: Size) -> tuple[Size, Size, Size]:
        """The resolution, the image's size in it, and the position of the image's upper left corner."""
        full = select_best_resolution(size, self.resolutions)
        scale = min(full[0] / size[0], full[1] / size[1])
        new = (min(math.ceil(size[0] * scale), full[0]), min(math.ceil(size[1] * scale), full[1]))
        return full, new, ((full[0] - new[0]) // 2, (full[1] - new[1]) // 2)

    def canvases(self, size: Size) -> tuple[Canvas, ...]:
        full, new, corner = self._resized(size)
        rows, cols = full[1] // self.side, full[0] // self.side
        whole = Canvas(1, 1, _ratio((self.side, self.side), size))
        return whole, Canvas(rows, cols, _ratio(new, size), corner)

    def tiles(self, image: Image.Image, normalise: Callable[[Image.Image], Tensor]) -> Tensor:
        full, new, corner = self._resized(image.size)
        canvas = Image.new("RGB", full)
        canvas.paste(image.resize(new), corner)
        views = [image.resize((self.side, self.side))]
        for top in range(0, full[1], self.side):
            for left in range(0, full[0], self.side):
                views.append(canvas.crop((left, top, left + self.side, top + self.side)))
        return torch.stack([normalise(view) for view in views])

    def layout(self, size: Size | None, num_tokens: int, num_tiles: int) -> Tensor:
        """As in WholeImage. A single tile, the whole image, is accepted for any size, as in LLaVA-1.6."""
        row_end = torch.full((1,), ROW_END)
        whole = torch.arange(num_tokens)
        if num_tiles == 1:
            return torch.cat([whole, row_end]) if self.learns_row_end else whole
        if self.merge_type == "flat":
            return torch.arange(num_tiles * num_tokens)
        size = self._checked(size, num_tiles)
        cols, rows = get_anyres_image_grid_shape(size, self.resolutions, self.side)
        g = math.isqrt(num_tokens)
        tiles = torch.arange(num_tokens, num_tiles * num_tokens).view(rows, cols, g, g)
        grid = tiles.transpose(1, 2).reshape(rows * g, cols * g)
        if self.learns_row_end:
            grid = unpadded(grid, size)
            grid = torch.cat([grid, row_end.expand(len(grid), 1)], dim=1)
        return torch.cat([whole, grid.flatten()])


@lru_cache(maxsize=65536)
def num_positions(tiling: WholeImage, size: Size, num_tokens: int) -> int:
    """L of an image that `tiling` has prepared; num_tokens is M."""
    return len(tiling.layout(size, num_tokens, tiling.num_tiles(size)))


def tiling_of(config, side: int) -> WholeImage:
    """How images are tiled for a model.

    Args:
        config: any object; image_aspect_ratio, patch_num, image_grid_pinpoints and mm_patch_merge_type are
            read from it. If absent or None they are square, 9, LLaVA-1.6's grids and flat.
        side: S.
    Raises:
        UserError: for a value that is none of the choices, or resolutions that S does not divide.
    """
    aspect_ratio = getattr(config, "image_aspect_ratio", None) or "square"
    check_choice("image_aspect_ratio", aspect_ratio, ASPECT_RATIOS)
    if aspect_ratio == "slice":
        # published configs hold it as text
        return Slice(side, int(getattr(config, "patch_num", None) or PATCH_NUMS[0]))
    if aspect_ratio == "anyres":
        resolutions = parse_pinpoints(getattr(config, "image_grid_pinpoints", None), side)
        return AnyRes(side, resolutions, getattr(config, "mm_patch_merge_type", None) or PATCH_MERGE_TYPES[0])
    return WholeImage()


def parse_pinpoints(pinpoints: Sequence | str | None, side: int) -> tuple[Size, ...]:
    """Parse --image_grid_pinpoints: [width, height] lists, their text, or a range of grids "(1x1),...,(6x6)"
    of columns x rows; None gives LLaVA-1.6's five grids.

    Raises UserError if it is none of these, or the side of a tile does not divide a resolution.
    """
    if pinpoints is None:
        return tuple((cols * side, rows * side) for cols, rows in ANYRES_GRIDS)
    try:
        if isinstance(pinpoints, str) and (
            corners := re.fullmatch(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)", pinpoints)
        ):
            left, top, right, bottom = map(int, corners.groups())
            listed: Sequence = [
                (cols * side, rows * side)
                for cols in range(left, right + 1)
                for rows in range(top, bottom + 1)
            ]
        else:
            listed = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        resolutions = tuple((int(width), int(height)) for width, height in listed)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"--image_grid_pinpoints must be a list of [width, height], got {pinpoints!r}."
        ) from error
    wrong = [size for size in resolutions if min(size) < side or any(length % side for length in size)]
    if wrong or not resolutions:
        raise UserError(
            f"--image_grid_pinpoints must be multiples of the tower's {side} pixels, got {pinpoints!r}."
        )
    return resolutions


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """The (width, height) that keeps most of the image's pixels and, among equals, wastes the fewest."""

    def kept_and_wasted(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / original_size[0], resolution[1] / original_size[1])
        scaled = int(original_size[0] * scale) * int(original_size[1] * scale)
        kept = min(scaled, original_size[0] * original_size[1])
        return kept, kept - resolution[0] * resolution[1]

    width, height = max(possible_resolutions, key=kept_and_wasted)
    return width, height


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: Sequence[Size] | str | None, patch_size: int
) -> tuple[int, int]:
    """(columns, rows) of tiles of side `patch_size` that anyres cuts an image of (width, height) into."""
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def fitted(size: Size, limit: Size) -> Size:
    """The largest (width, height) of `size`'s ratio within `limit`, rounded, at least one pixel each."""
    scale = min(limit[0] / size[0], limit[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def laid_out(pixels: Tensor, size: Size, canvas_size: Size) -> Tensor:
    """Scale float[3, h, w] (bilinear, without antialiasing) as an image of `size` fits the canvas, and put it
    in the upper left corner of a canvas of zeros, float[3, H, W]."""
    width, height = fitted(size, canvas_size)
    scaled = F.interpolate(pixels[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return F.pad(scaled, (0, canvas_size[0] - width, 0, canvas_size[1] - height))


def unpadded(grid: Tensor, size: Size) -> Tensor:
    """Cut those rows or columns off both ends of a grid [rows, columns] that only pad a centred image."""
    rows, cols = grid.shape
    width, height = size
    if width * rows > cols * height:
        padding = (rows - height * cols // width) // 2
        return grid[padding : rows - padding]
    padding = (cols - width * rows // height) // 2
    return grid[:, padding : cols - padding]


def _ratio(new: Size, old: Size) -> tuple[float, float]:
    return new[0] / old[0], new[1] / old[1]
