"""Resizes long, thin pictures at the cost of common ones: the same pixels, no huge intermediate picture.

An image processor enlarges the shorter side to the tower's before it cuts the middle out of the longer one,
and padding makes a square of the longer side before it is scaled down. With a picture of 1 x 8000 pixels
these steps make 900 and 64 million pixels. Here output pixels are computed only if they are kept and depend
on the picture. The arithmetic is Pillow's (its Resample.c).
"""

# h, w, c rows, columns and colours of a picture

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from PIL.Image import Resampling

# The ordinary way may use so many intermediate pixels, or so many times those of its input or output
COMMON_PIXELS = 2**22
MAX_GROWTH = 4
PRECISION = 22  # fractional bits of a weight

Color = tuple[int, int, int]
Size = tuple[int, int]  # width and height


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# Those of Pillow's filters that the towers' image processors use: their weights and their radius
FILTERS: dict[int, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    Resampling.BILINEAR: (_triangle, 1.0),
    Resampling.BICUBIC: (_cubic, 2.0),
}


@dataclass(frozen=True)
class _Axis:
    """A picture's width or height on the canvas that is resized.

    Args:
        canvas, new: the canvas's length before and after resizing, in pixels.
        start, length: the part of `canvas` that the picture takes.
        window: the part of `new` that is kept, from and to.
        resample: a key of FILTERS.
    """

    canvas: int
    new: int
    start: int
    length: int
    window: tuple[int, int]
    resample: int

    @property
    def num_kept(self) -> int:
        return self.window[1] - self.window[0]

    @property
    def _scale(self) -> float:
        return self.canvas / self.new

    @property
    def _reach(self) -> float:
        return FILTERS[self.resample][1] * max(self._scale, 1.0)

    def outputs(self) -> range:
        """The pixels of the window that depend on the picture; one more at each end does no harm."""
        first = math.floor((self.start - self._reach) / self._scale) - 1
        last = math.ceil((self.start + self.length + self._reach) / self._scale) + 1
        return range(max(self.window[0], first), min(self.window[1], last))

    def inputs(self, output: int) -> tuple[int, int]:
        """The part of the canvas from which an output pixel is computed, from and to."""
        center = (output + 0.5) * self._scale
        return max(0, int(center - self._reach + 0.5)), min(self.canvas, int(center + self._reach + 0.5))

    def weights(self, output: int) -> np.ndarray:
        """int32[inputs]: the weight of each input of an output pixel, in units of 2**-PRECISION."""
        center = (output + 0.5) * self._scale
        distance = np.arange(*self.inputs(output)) - center + 0.5
        weights = FILTERS[self.resample][0](distance * (1.0 / max(self._scale, 1.0)))
        weights = weights / weights.sum() * 2**PRECISION
        return np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)

    def shown(self) -> slice:
        """The part of the picture from which the outputs are computed."""
        outputs = self.outputs()
        left, right = self.inputs(outputs[0])[0], self.inputs(outputs[-1])[1]
        return slice(max(0, left - self.start), min(self.length, right - self.start))

    def resized(self, pixels: np.ndarray, background: Color) -> np.ndarray:
        """The outputs uint8[h, outputs, c] of a picture uint8[h, length, c]; this axis is the width."""
        columns = []
        for output in self.outputs():
            (left, right), weights = self.inputs(output), self.weights(output)
            first, last = np.clip((left - self.start, right - self.start), 0, self.length)
            inside = weights[first - left + self.start :][: last - first]
            total = np.einsum("hwc,w->hc", pixels[:, first:last], inside, dtype=np.int32)
            total = total + (weights.sum() - inside.sum()) * np.array(background) + 2 ** (PRECISION - 1)
            columns.append((total >> PRECISION).clip(0, 255).astype(np.uint8))
        return np.stack(columns, axis=1)


def resized_part(image: Image.Image, image_processor, background: Color | None) -> Image.Image | None:
    """Resize an image as a processor does, but only the part of its longer side that the centre crop keeps.

    Args:
        image: RGB.
        image_processor: a PIL image processor of transformers.
        background: colour that pads the image to a square first; None: it is not padded.
    Returns:
        The image for the processor with do_resize=False. None if the ordinary way costs no more than for a
        common picture, or if the processor resizes by a rule or filter that is not known here.
    """
    side = max(image.size)
    canvas = image.size if background is None else (side, side)
    new = resized_size(canvas, image_processor)
    if new is None or image_processor.resample not in FILTERS:
        return None
    x, y = _axes(image.size, canvas, new, image_processor)
    between, out = max(math.prod(canvas), math.prod(new)), x.num_kept * y.num_kept
    if between <= max(COMMON_PIXELS, MAX_GROWTH * math.prod(image.size), MAX_GROWTH * out):
        return None
    return _resized(image, x, y, background or (0, 0, 0))


def resized_size(size: Size, image_processor) -> Size | None:
    """The size to which a processor resizes; None if it does not resize, or by a rule unknown here."""
    rule = {name: value for name, value in dict(image_processor.size).items() if value is not None}
    if not image_processor.do_resize or rule.keys() not in ({"height", "width"}, {"shortest_edge"}):
        return None
    if "width" in rule:
        return rule["width"], rule["height"]
    edge = rule["shortest_edge"]
    longer = int(edge * max(size) / min(size))  # rounded as transformers does
    return (edge, longer) if size[0] <= size[1] else (longer, edge)


def _axes(size: Size, canvas: Size, new: Size, image_processor) -> list[_Axis]:
    """The axes of width and height; the window of the longer one is the processor's centre crop."""
    crops = getattr(image_processor, "do_center_crop", None)
    longer = new.index(max(new))
    axes = []
    for i, name in enumerate(("width", "height")):
        num_kept = min(image_processor.crop_size[name], new[i]) if crops and i == longer else new[i]
        first = (new[i] - num_kept) // 2
        start = (canvas[i] - size[i]) // 2
        window = (first, first + num_kept)
        axes.append(_Axis(canvas[i], new[i], start, size[i], window, image_processor.resample))
    return axes


def _resized(image: Image.Image, x: _Axis, y: _Axis, background: Color) -> Image.Image:
    """Compute the windows of both axes. As in Pillow, widths come first and are rounded to 8 bits."""
    rows = y.shown()
    y = replace(y, start=y.start + rows.start, length=rows.stop - rows.start)
    pixels = x.resized(np.asarray(image)[rows], background)
    pixels = y.resized(pixels.swapaxes(0, 1), background).swapaxes(0, 1)
    whole = Image.new("RGB", (x.num_kept, y.num_kept), background)
    corner = x.outputs().start - x.window[0], y.outputs().start - y.window[0]
    whole.paste(Image.fromarray(np.ascontiguousarray(pixels)), corner)
    return whole
