"""Heatmaps over photographs: token weights for pixels, colours, and sheets of panels.

H, W: pixels of the shown image; M': its visual tokens in the prompt.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from llava.visualization.token_map import TokenMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORMAP = cv2.COLORMAP_TURBO
OPACITY = 0.55  # of the heat over the photograph, which is made grey so that colour shows only heat
UNSEEN_BRIGHTNESS = 0.3  # of pixels that no token covers
# light_up: brightness of pixels without heat, and of those that no token covers; the light's RGB and opacity
DIM, DARK = 0.4, 0.12
LIGHT, LIGHT_OPACITY = (255, 225, 140), 0.2
PANEL_INCHES, NARROWEST_INCHES = 2.1, 1.3  # longer side of a panel; width that a caption needs
COLUMNS, ROWS = 6, 5  # most panels across and down a page
BAR_INCHES = 2.0  # minimum height of a colour bar, so that its label fits
DOTS_PER_INCH = 150


def paint_tokens(weights: np.ndarray, mapping: TokenMap, smooth: bool = False) -> np.ndarray:
    """Give every pixel the weight of its token. If a tile and the whole view both show it, it gets the sum.

    Args:
        weights: float[M'].
        mapping: the token map of the image at the size at which it is shown.
        smooth: interpolate linearly between the centres of tokens instead of filling blocks.
    Returns:
        float32[H, W], NaN where no token covers the pixel.
    Raises:
        UserError: if there is not exactly one weight for each token.
    """
    heat, seen = np.float32(0), np.False_
    for part, table in zip(mapping.mappings, mapping.tables(weights), strict=True):
        covered = part.covered(mapping.grid)
        if smooth:
            # cv2.remap expects the centres of tokens at integers
            x, y = (axis.astype(np.float32) - 0.5 for axis in part.token_coordinates(mapping.grid))
            values = cv2.remap(table, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        else:
            values = table.flatten()[part.token_of_pixels(mapping.grid)]
        heat, seen = heat + np.where(covered, values, 0), seen | covered
    return np.where(seen, heat, np.float32(np.nan))


def overlay(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Colour a grey copy of an image by heat. Pixels that no token covers stay dark.

    Args:
        image: uint8[H, W, 3], RGB.
        heat: float[H, W], NaN where no token covers the pixel.
        limit: the heat that gets the brightest colour; heat 0 gets the darkest.
    Returns:
        uint8[H, W, 3], RGB.
    """
    unseen, level = np.isnan(heat), _level(heat, limit)
    colours = cv2.applyColorMap(np.round(255 * level).astype(np.uint8), COLORMAP)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(np.ascontiguousarray(colours), OPACITY, grey, 1 - OPACITY, 0)
    return np.where(unseen[..., None], (grey * UNSEEN_BRIGHTNESS).astype(np.uint8), mixed)


def light_up(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Dim an image and brighten it by heat. Its colours stay recognisable, and black pixels show heat too.

    Args:
        image, heat: as in overlay.
        limit: the heat that gets full brightness. Pixels of heat 0 are dimmed; those that no token covers are
            nearly black.
    Returns:
        uint8[H, W, 3], RGB.
    """
    level = _level(heat, limit)[..., None]
    dim = DIM * image
    lit = (1 - LIGHT_OPACITY) * image + LIGHT_OPACITY * np.array(LIGHT)
    shown = np.where(np.isnan(heat)[..., None], DARK * image, dim + level * (lit - dim))
    return np.round(shown).astype(np.uint8)


def _level(heat: np.ndarray, limit: float) -> np.ndarray:
    """Return heat as a fraction of `limit`, clipped to 0..1; NaN becomes 0."""
    return np.clip(np.nan_to_num(heat) / max(limit, np.finfo(np.float32).tiny), 0, 1)


def contact_sheets(
    image: np.ndarray, panels: Sequence[tuple[str, np.ndarray]], title: str, scale: str
) -> list["Figure"]:
    """Draw the image and a panel for each heatmap, on as many pages as needed.

    All pages share one colour scale, from 0 to the 99.5th percentile of the heat.

    Args:
        image: uint8[H, W, 3], RGB.
        panels: (caption, float[H, W] as paint_tokens returns it, as a fraction of 1).
        title: the title of every page.
        scale: the label of the colour bar, which is in percent.
    """
    values = np.concatenate([heat[~np.isnan(heat)] for _, heat in panels])
    limit = float(np.percentile(values, 99.5))
    shown = [("image", image), *((caption, overlay(image, heat, limit)) for caption, heat in panels)]
    pages = [shown[start : start + COLUMNS * ROWS] for start in range(0, len(shown), COLUMNS * ROWS)]
    numbers = [
        f", page {page} of {len(pages)}" if len(pages) > 1 else "" for page in range(1, len(pages) + 1)
    ]
    return [_sheet(page, title + number, scale, limit) for page, number in zip(pages, numbers, strict=True)]


def _sheet(shown: Sequence[tuple[str, np.ndarray]], title: str, scale: str, limit: float) -> "Figure":
    """Draw captioned pictures, uint8[H, W, 3] of one size, in rows, with a colour bar from 0 to `limit`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    height, width = shown[0][1].shape[:2]
    panel_width = max(PANEL_INCHES * min(1, width / height), NARROWEST_INCHES)
    panel_height = PANEL_INCHES * min(1, height / width)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (columns * panel_width + 0.9, max(rows * (panel_height + 0.24), BAR_INCHES) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    lines = textwrap.wrap(plain(title), int(size[0] * 12))  # 12 letters an inch
    figure.suptitle("\n".join(lines), fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (caption, picture) in zip(axes.flat, shown, strict=False):
        axis.imshow(picture, interpolation="antialiased")
        axis.set_title(plain(_shortened(caption, int(panel_width * 13))), fontsize=9)
    lookup = cv2.applyColorMap(np.arange(256, dtype=np.uint8), COLORMAP).reshape(-1, 3)[:, ::-1] / 255
    colours = ScalarMappable(Normalize(0, 100 * limit), ListedColormap(lookup))
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.01, extend="max", aspect=30)
    bar.set_label(scale, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _shortened(caption: str, length: int) -> str:
    """Shorten a caption to at most `length` letters, but keep a figure in brackets at its end."""
    if len(caption) <= length:
        return caption
    word, bracket, figure = caption.rpartition(" (")
    kept = length - len(bracket + figure) - 1
    return f"{word[:kept]}…{bracket}{figure}" if word else f"{caption[: length - 1]}…"


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure as PNG and SVG. `path` has no suffix; its folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix in (".png", ".svg"):
        written.append(path.with_name(path.name + suffix))
        figure.savefig(written[-1], dpi=DOTS_PER_INCH)
    return written


def plain(text: str) -> str:
    """Escape text that matplotlib would read as mathematics, and replace unprintable characters by dots."""
    return "".join(letter if letter.isprintable() else "·" for letter in text).replace("$", r"\$")
