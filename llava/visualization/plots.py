"""Heat over photographs: token weights to pixels, colours, and sheets of panels.

H, W pixels of the shown image, M' visual tokens of it in the prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from llava.visualization.token_map import TokenMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORMAP = cv2.COLORMAP_TURBO
OPACITY = 0.55  # of the heat over the photograph, which is made grey: colour means heat alone
UNSEEN_BRIGHTNESS = 0.3  # of pixels that no token sees
PANEL_INCHES = 2.1
DOTS_PER_INCH = 150


def paint_tokens(weights: np.ndarray, mapping: TokenMap, smooth: bool = False) -> np.ndarray:
    """Give every pixel the weight of its token; where tiles and a whole view both show it, the sum of both.

    Args:
        weights: float[M'].
        mapping: of the image as it is to be shown.
        smooth: interpolate linearly between the centres of tokens instead of filling blocks.
    Returns:
        float32[H, W], NaN where no token sees the pixel.
    Raises:
        ValueError: if there is not one weight for each token.
    """
    heat, seen = np.float32(0), np.False_
    for part, table in zip(mapping.mappings, mapping.tables(weights), strict=True):
        covered = part.covered(mapping.grid)
        if smooth:
            x, y = (
                axis.astype(np.float32) - 0.5 for axis in part.token_coordinates(mapping.grid)
            )  # centres at integers
            values = cv2.remap(table, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        else:
            values = table.flatten()[part.token_of_pixels(mapping.grid)]
        heat, seen = heat + np.where(covered, values, 0), seen | covered
    return np.where(seen, heat, np.float32(np.nan))


def overlay(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Colour a grey copy of an image by heat; where no token saw it, it is left dark.

    Args:
        image: uint8[H, W, 3], RGB.
        heat: float[H, W], NaN where nothing is known.
        limit: heat of the brightest colour; 0 is the darkest.
    Returns:
        uint8[H, W, 3], RGB.
    """
    unseen = np.isnan(heat)
    level = np.clip(np.nan_to_num(heat) / max(limit, np.finfo(np.float32).tiny), 0, 1)
    colours = cv2.applyColorMap(np.round(255 * level).astype(np.uint8), COLORMAP)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(np.ascontiguousarray(colours), OPACITY, grey, 1 - OPACITY, 0)
    return np.where(unseen[..., None], (grey * UNSEEN_BRIGHTNESS).astype(np.uint8), mixed)


def contact_sheet(
    image: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray]],
    title: str,
    columns: int = 6,
) -> "Figure":
    """The image, then a panel for each heat, all on one colour scale from 0 to the 99.5th percentile.

    Args:
        image: uint8[H, W, 3], RGB.
        panels: (caption, float[H, W]) as paint_tokens gives them.
        title: of the sheet.
        columns: panels in a row, at most.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    values = np.concatenate([heat[~np.isnan(heat)] for _, heat in panels])
    limit = float(np.percentile(values, 99.5))
    columns = min(columns, len(panels) + 1)
    rows = -(-(len(panels) + 1) // columns)
    height, width = image.shape[:2]
    panel_height = PANEL_INCHES * height / width
    figure = Figure(
        figsize=(columns * PANEL_INCHES + 0.9, rows * (panel_height + 0.24) + 0.4), layout="constrained"
    )
    figure.suptitle(plain(title), fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shown = [("image", image), *((caption, overlay(image, heat, limit)) for caption, heat in panels)]
    for axis, (caption, picture) in zip(axes.flat, shown, strict=False):
        axis.imshow(picture, interpolation="antialiased")
        axis.set_title(plain(caption), fontsize=9)
    lookup = cv2.applyColorMap(np.arange(256, dtype=np.uint8), COLORMAP).reshape(-1, 3)[:, ::-1] / 255
    scale = ScalarMappable(Normalize(0, 100 * limit), ListedColormap(lookup))
    bar: Colorbar = figure.colorbar(scale, ax=axes, fraction=0.05, pad=0.01, extend="max")
    bar.set_label("attention to a visual token (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside one another; `path` is without suffix."""
    written = []
    for suffix in (".png", ".svg"):
        written.append(path.with_name(path.name + suffix))
        figure.savefig(written[-1], dpi=DOTS_PER_INCH)
    return written


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
