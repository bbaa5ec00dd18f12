"""The figure of a PrismView: sub-bands, query paths and region attention."""

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from llava.visualization.plots import overlay
from llava.visualization.prism_view import BANDS, PrismView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import SubplotSpec

PANEL_INCHES = 2.0
PANELS = 5  # in a row
TITLE_SIZE = 8
SCALES = (
    "numbers: values of the darkest and the brightest colour; 1 is the panel's mean (last row: an equal part)"
)


class Panel(NamedTuple):
    """A picture uint8[S, S, 3]; lines divide it into regions x regions squares if `regions` exceeds 1."""

    caption: str
    picture: np.ndarray
    regions: int = 1


def prism_figure(result: PrismView) -> Figure:
    """Draw three rows: the view and its sub-bands, the query paths, and the attention to patches at each s.

    White lines separate the tokens' regions. In each panel, colours run from the 1st to the 99th percentile
    of its values; the caption gives both.
    """
    grid = result.path_norms.shape[-1]
    figure = Figure(figsize=(PANELS * PANEL_INCHES, 3 * (PANEL_INCHES + 0.55)), layout="constrained")
    figure.supxlabel(SCALES, fontsize=TITLE_SIZE)
    rows = figure.add_gridspec(3, 1)
    total = max(result.subband_energy.sum(), np.finfo(np.float32).tiny)
    bands = [
        _heat(result.view, energy / energy.mean(), f"{name}: {energy.sum() / total:.1%} of the energy", grid)
        for name, energy in zip(BANDS[: len(result.subband_energy)], result.subband_energy, strict=True)
    ]
    _show(figure, rows[0], [Panel("input of the tower", result.view), *bands])
    lengths = [
        _heat(result.view, norm / norm.mean(), f"norm of the {path} query", grid)
        for path, norm in zip(result.paths, result.path_norms, strict=True)
    ]
    cells = rows[1].subgridspec(1, 2, width_ratios=(PANELS - len(lengths), len(lengths)))
    _bars(figure.add_subplot(cells[0]), result)
    _show(figure, cells[1], lengths)
    taken = []
    for s, weights in result.region_attention.items():
        used = f"each from {_patches_used(weights):.2f} of {s * s} patches (effective)"
        panel = _heat(result.view, result.taken(s), f"s = {s}: {(grid // s) ** 2} tokens,\n{used}", grid)
        taken.append(panel._replace(regions=grid // s))
    _show(figure, rows[2], taken)
    return figure


def _patches_used(weights: np.ndarray) -> float:
    """Return the effective number of patches of a region that a token uses.

    It is exp(entropy in nats) of the weights float[g, g, h, s, s] over a region, mean over tokens and heads.
    """
    flat = weights.reshape(-1, weights.shape[-1] ** 2)
    entropy = -(flat * np.log(np.maximum(flat, np.finfo(np.float32).tiny))).sum(axis=1)
    return float(np.exp(entropy).mean())


def _heat(view: np.ndarray, values: np.ndarray, name: str, grid: int) -> Panel:
    """Draw values over the view. They lie on the grid, or on a grid with half as many cells on a side."""
    if len(values) < grid:
        values = np.kron(values, np.ones((2, 2)))[:grid, :grid]  # an odd grid cuts the last pair
    low, high = np.percentile(values, (1, 99))
    heat = cv2.resize(values.astype(np.float32), view.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    picture = overlay(view, np.maximum(heat - low, 0), high - low)
    return Panel(f"{name}\n{low:.2f} to {high:.2f}", picture)


def _show(figure: Figure, cell: "SubplotSpec", panels: list[Panel]) -> None:
    for place, panel in zip(cell.subgridspec(1, len(panels)), panels, strict=True):
        axis = figure.add_subplot(place)
        axis.imshow(panel.picture, interpolation="antialiased")
        for line in np.arange(1, panel.regions) * len(panel.picture) / panel.regions - 0.5:
            axis.axhline(line, color="white", linewidth=0.7)
            axis.axvline(line, color="white", linewidth=0.7)
        axis.set_title(panel.caption, fontsize=TITLE_SIZE)
        axis.set_axis_off()


def _bars(axis: "Axes", result: PrismView) -> None:
    """Draw the learnt weights of the paths beside their share of the fused query on this image."""
    places = np.arange(len(result.paths))
    kinds = (("learnt weight", result.fusion), ("share of the norm", result.path_shares()))
    for offset, (name, values) in zip((-0.2, 0.2), kinds, strict=True):
        axis.bar_label(
            axis.bar(places + offset, values, width=0.38, label=name),
            [f"{value:.0%}" for value in values],
            fontsize=TITLE_SIZE - 1,
        )
    axis.set_xticks(places, result.paths, fontsize=TITLE_SIZE)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.tick_params(labelsize=TITLE_SIZE - 1)
    axis.margins(y=0.25)
    axis.set_title("fusion of the query paths", fontsize=TITLE_SIZE)
    axis.legend(fontsize=TITLE_SIZE - 1, frameon=False, loc="upper center", ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
