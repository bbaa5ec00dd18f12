"""The figure of a SequenceAttention: attention over positions and over layers, and its entropy."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from llava.visualization.plots import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llava.visualization.sequence import SequenceAttention

# Distinguishable with any colour vision (Okabe and Ito 2008); the keys are sequence.SPANS
COLOURS = {"system": "#999999", "image": "#E69F00", "question": "#0072B2", "answer": "#009E73"}
SMALLEST = 1e-5  # share of attention at the lower end of the scales
TEXT_SIZE = 8


def sequence_figure(result: "SequenceAttention", title: str) -> Figure:
    """Draw attention over positions (mean of the layers, then by layer) and to each span, and its entropy."""
    spans = dict(zip(COLOURS, result.bounds.tolist(), strict=True))
    mean = result.weights.mean(axis=1)  # [layers, T']
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    figure.suptitle(plain(title), fontsize=10)
    axes = figure.subplot_mosaic([["line", "line"], ["map", "map"], ["share", "entropy"]])
    _line(axes["line"], mean.mean(axis=0), spans)
    _map(axes["map"], mean, result.layers, spans)
    axes["map"].sharex(axes["line"])
    _shares(axes["share"], result.shares().mean(axis=1), result.layers)
    _entropy(axes["entropy"], result.entropy, result.layers)
    for axis in axes.values():
        axis.tick_params(labelsize=TEXT_SIZE - 1)
        axis.xaxis.label.set_size(TEXT_SIZE)
        axis.yaxis.label.set_size(TEXT_SIZE)
    return figure


def _line(axis: "Axes", mean: np.ndarray, spans: dict[str, list[int]]) -> None:
    last, level = -np.inf, 0
    for name, (start, end) in spans.items():
        if end <= start:
            continue
        axis.axvspan(start, end, color=COLOURS[name], alpha=0.15, linewidth=0)
        axis.stairs(
            mean[start:end], np.arange(start, end + 1), fill=True, color=COLOURS[name], baseline=SMALLEST
        )
        centre = (start + end) / 2
        level = 1 - level if centre - last < 0.18 * len(mean) else 0  # captions of narrow spans in two rows
        last = centre
        share = f"{name}\n{mean[start:end].sum():.1%} of {end - start} positions"
        axis.text(
            *(centre, 1.03 + 0.26 * level),
            share,
            transform=axis.get_xaxis_transform(),
            ha="center",
            fontsize=TEXT_SIZE - 1,
            color=COLOURS[name],
        )
    axis.set_yscale("log")
    axis.set_ylim(SMALLEST, 1)
    axis.set_xlim(0, len(mean))
    axis.set_ylabel("attention (mean of layers)")


def _map(axis: "Axes", mean: np.ndarray, layers: list[int], spans: dict[str, list[int]]) -> None:
    picture = axis.imshow(
        np.maximum(mean, SMALLEST),
        norm=LogNorm(SMALLEST, 1),
        cmap="magma",
        aspect="auto",
        interpolation="nearest",
        extent=(0, mean.shape[1], len(layers), 0),
    )
    for name, (start, end) in spans.items():
        axis.axvline(end, color="white", linewidth=0.6)
        axis.plot([start, end], [0, 0], color=COLOURS[name], linewidth=4, clip_on=False)
    _name_layers(axis.yaxis, layers, offset=0.5)
    axis.set(xlabel="position in the sequence", ylabel="layer")
    axis.figure.colorbar(picture, ax=axis, pad=0.01, extend="min").ax.tick_params(labelsize=TEXT_SIZE - 1)


def _shares(axis: "Axes", shares: np.ndarray, layers: list[int]) -> None:
    bottom = np.zeros(len(layers))
    for name, share in zip(COLOURS, shares.T, strict=True):
        axis.bar(range(len(layers)), share, bottom=bottom, width=0.85, color=COLOURS[name], label=name)
        bottom += share
    _name_layers(axis.xaxis, layers)
    axis.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(ncols=4, fontsize=TEXT_SIZE - 1, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)


def _entropy(axis: "Axes", entropy: np.ndarray, layers: list[int]) -> None:
    places, middle = range(len(layers)), entropy.mean(axis=1)
    axis.fill_between(places, entropy.min(axis=1), entropy.max(axis=1), alpha=0.2, linewidth=0)
    axis.plot(places, middle, marker="o", markersize=3)
    _name_layers(axis.xaxis, layers)
    axis.set(xlabel="layer", ylabel="entropy (bits)")
    axis.set_ylim(bottom=0)
    axis.set_title("mean and range over the answer's tokens", fontsize=TEXT_SIZE - 1)


def _name_layers(axis, layers: list[int], offset: float = 0) -> None:
    """Label an axis with at most 12 of the layers' numbers, evenly spaced."""
    step = -(-len(layers) // 12)
    places = range(0, len(layers), step)
    axis.set_ticks([place + offset for place in places], [layers[place] for place in places])
