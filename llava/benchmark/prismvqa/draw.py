"""Draw scenes with Pillow: items, patterns and letters at 4 times the width and height, then averaged."""

from __future__ import annotations

import importlib
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.benchmark.prismvqa.scene import Ground, Item, Scene
from llava.errors import UserError

OVERSAMPLING = 4
RIM = 0.004  # width of the dark line around an item, as a share of the picture's side
RIM_RGB = (25, 25, 25)
CAP_HEIGHT = 0.045  # largest height of letters, as a share of the picture's side
TEXT_WIDTH = 2.1  # largest width of a text, in radii of its item
HALO = 0.004  # width of the halo around letters, as a share of the picture's side
# Circumscribed radius of each shape in the item's radii; it makes areas similar and keeps corners in REACH
CORNERS = {
    "circle": 1.0,
    "square": 1.2,
    "triangle": 1.25,
    "diamond": 1.2,
    "hexagon": 1.08,
    "star": 1.25,
    "cross": 1.18,
    "heart": 1.15,
}


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB picture, uint8[size, size, 3].

    Args:
        size: side in pixels.
    """
    picture = draw_ground(scene.ground, size)
    for item in scene.items:
        _paste(picture, item, size)
    return picture


def draw_ground(ground: Ground, size: int) -> Image.Image:
    """The background as an RGB picture."""
    if not ground.photo:
        angle = math.radians(ground.angle)
        rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
        along = 0.5 + (math.cos(angle) * columns + math.sin(angle) * rows) / math.sqrt(2)
        first, second = (np.array(rgb, dtype=np.float64) for rgb in ground.rgb)
        fade = first + along[..., None] * (second - first)
        return Image.fromarray(np.clip(fade + 0.5, 0, 255).astype(np.uint8))
    photo = _photo(ground.photo)
    left, top, share = ground.crop
    side = share * min(photo.size)
    left, top = left * (photo.width - side), top * (photo.height - side)
    box = (left, top, left + side, top + side)
    picture = photo.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if ground.mirrored else picture


def _optional(module: str):
    """Import a module of the extra `benchmark`. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"PrismVQA needs {error.name}; run pip install -e '.[benchmark]'.") from None


@cache
def _photo(name: str) -> Image.Image:
    data = _optional("skimage.data")
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _paste(picture: Image.Image, item: Item, size: int) -> None:
    """Draw one item enlarged, aligned with the picture's pixel grid, and paste it into the picture."""
    reach = CORNERS[item.shape] * item.radius + RIM
    if item.text:
        reach = max(reach, TEXT_WIDTH / 2 * item.radius + 2 * HALO)
    left, top = (math.floor((centre - reach) * size) for centre in (item.x, item.y))
    right, bottom = (math.ceil((centre + reach) * size) for centre in (item.x, item.y))
    scale = OVERSAMPLING * size
    patch = ((right - left) * OVERSAMPLING, (bottom - top) * OVERSAMPLING)
    centre = (item.x * scale - left * OVERSAMPLING, item.y * scale - top * OVERSAMPLING)
    outline = outline_of(item) * scale + centre

    rim, inside = Image.new("L", patch), Image.new("L", patch)
    corners = [tuple(corner) for corner in outline]
    ImageDraw.Draw(inside).polygon(corners, fill=255)
    pen = ImageDraw.Draw(rim)
    pen.polygon(corners, fill=255)
    pen.line([*corners, corners[0], corners[1]], fill=255, width=round(2 * RIM * scale), joint="curve")
    colored = Image.new("RGB", patch, RIM_RGB)
    colored.paste(_surface(item, patch, centre, scale), mask=inside)
    if item.text:
        _print(colored, rim, item, centre, scale)
    colored.putalpha(rim)
    # averaged with premultiplied alpha, so that colors outside the rim do not bleed in
    small = colored.convert("RGBa").reduce(OVERSAMPLING).convert("RGBA")
    picture.paste(small, (left, top), small)


def outline_of(item: Item) -> np.ndarray:
    """The corners relative to the item's centre, float64[K, 2] as (x, y), as shares of the picture's side."""
    angle = math.radians(item.angle)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return _unit_outline(item.shape) @ turn * (CORNERS[item.shape] * item.radius)


@cache
def _unit_outline(shape: str) -> np.ndarray:
    """A shape's corners within a circle of radius 1, y downwards."""

    def polygon(corners: int, start: float, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
        angles = np.radians(start) + 2 * np.pi * np.arange(corners) / corners
        return np.stack((np.cos(angles), np.sin(angles)), 1) * np.resize(radii, corners)[:, None]

    if shape == "heart":
        t = 2 * np.pi * np.arange(64) / 64
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        heart = np.stack((x, -y - 2.5), 1)
        return heart / np.linalg.norm(heart, axis=1).max()
    if shape == "cross":
        arm = 0.35
        quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
        turns = [quarter]
        for _ in range(3):
            turns.append(np.stack((-turns[-1][:, 1], turns[-1][:, 0]), 1))
        return np.concatenate(turns) / math.hypot(1, arm)
    return {
        "circle": lambda: polygon(96, 0),
        "square": lambda: polygon(4, 45),
        "triangle": lambda: polygon(3, -90),
        "diamond": lambda: polygon(4, 0),
        "hexagon": lambda: polygon(6, 0),
        "star": lambda: polygon(10, -90, (1.0, 0.45)),
    }[shape]()


def _surface(item: Item, patch: tuple[int, int], centre: tuple[float, float], scale: int) -> Image.Image:
    """The item's color, or its pattern in a lighter and a darker shade, over a whole patch."""
    rgb = np.array(item.rgb, dtype=np.float64)
    if item.pattern == "plain":
        return Image.new("RGB", patch, item.rgb)
    shades = np.stack((rgb * 0.6, rgb + (255 - rgb) * 0.45)).round().astype(np.uint8)
    # in periods from the centre along the image's axes, since a pattern does not rotate with its shape
    x = (np.arange(patch[0]) + 0.5 - centre[0])[None] / (item.period * scale) + item.phase[0]
    y = (np.arange(patch[1]) + 0.5 - centre[1])[:, None] / (item.period * scale) + item.phase[1]
    return Image.fromarray(shades[_is_light(item, x, y).astype(np.intp)])


def _is_light(item: Item, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a pattern is light, bool[H, W], at x float[1, W] and y float[H, 1] in periods."""
    if item.pattern == "stripes":
        across = {
            "horizontal": y + 0 * x,
            "vertical": x + 0 * y,
            "rising": (x + y) / math.sqrt(2),
            "falling": (x - y) / math.sqrt(2),
        }[item.direction]
        return across % 1 < 0.5
    if item.pattern == "dots":
        return (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 > 0.4**2
    if item.pattern == "checks":  # along the diagonals checks have period 1, too
        return (np.floor(math.sqrt(2) * x) + np.floor(math.sqrt(2) * y)) % 2 < 0.5
    assert item.pattern == "rings"
    return (np.hypot(x - item.phase[0], y - item.phase[1]) + item.phase[0]) % 1 < 0.5


def _print(
    colored: Image.Image, covered: Image.Image, item: Item, centre: tuple[float, float], scale: int
) -> None:
    """Print the item's text at its centre, in black with a white halo or the reverse."""
    dark = np.dot(item.rgb, (0.299, 0.587, 0.114)) < 120
    ink, halo = ((255, 255, 255), (20, 20, 20)) if dark else ((10, 10, 10), (250, 250, 250))
    font = _font(item.font, _font_size(item, scale))
    stroke = round(HALO * scale)
    options: dict[str, Any] = {"font": font, "anchor": "mm", "stroke_width": stroke}
    ImageDraw.Draw(covered).text(centre, item.text, fill=255, **options)
    pen = ImageDraw.Draw(colored)
    pen.text(centre, item.text, fill=halo, stroke_fill=halo, **options)
    pen.text(centre, item.text, fill=ink, font=font, anchor="mm")


def _font_size(item: Item, scale: int) -> int:
    """The size in points at which the text is CAP_HEIGHT high, or smaller if it would exceed TEXT_WIDTH."""
    probe = _font(item.font, 100)
    left, top, right, bottom = probe.getbbox(item.text)
    fits = min(CAP_HEIGHT / (bottom - top), TEXT_WIDTH * item.radius / (right - left))
    return max(1, int(100 * fits * scale))


@lru_cache(maxsize=512)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(name), points)


def font_file(name: str) -> str:
    """The path of a font file that matplotlib ships."""
    return str(Path(_optional("matplotlib").get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")
