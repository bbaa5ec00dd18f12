"""The figure of a run: the parts of prefill, and how each cost falls with the number of visual tokens."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from llava.benchmark.speed.report import PART_NAMES

# Colours that can be told apart with any colour vision (Okabe and Ito 2008)
PART_COLOURS = {"tower": "#0072B2", "projector": "#E69F00", "language_model": "#999999"}
LINES = {
    "prefill": ("prefill", "#0072B2", "o"),
    "first_token": ("first token", "#D55E00", "s"),
    "token": ("each later token", "#009E73", "^"),
    "cache": ("cache", "#CC79A7", "D"),
}
TEXT_SIZE = 8
DOTS_PER_INCH = 150


def cost_figure(rows: list[dict], about: dict) -> Figure:
    """Left: prefill by parts, one bar for each row. Right: costs by visual tokens, relative to row 1."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=[1.2, 1])
    timed = "seconds" in rows[0]
    unit = ("seconds", 1e3, f"ms of {about['time']} time") if timed else ("gflop", 1, "GFLOP")
    where = f"{about['machine']}, {about['dtype']}" if timed else "counted"
    layers = "" if about["layers"] == about["full_layers"] else f", {about['layers']} layers"
    figure.suptitle(f"{about['shape']}{layers}: {where}", fontsize=TEXT_SIZE + 1)
    _bars(bars, rows, *unit)
    _lines(lines, rows, timed)
    for axis in (bars, lines):
        axis.tick_params(labelsize=TEXT_SIZE)
        axis.xaxis.label.set_size(TEXT_SIZE)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(axis, rows: list[dict], field: str, factor: float, unit: str) -> None:
    labels = [f"{row['name']}, {row['tokens']}" for row in rows]
    start = [0.0] * len(rows)
    for part, colour in PART_COLOURS.items():
        widths = [factor * row[field][part] for row in rows]
        axis.barh(range(len(rows)), widths, left=start, color=colour, label=PART_NAMES[part])
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(f"prefill, {unit}")
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(PART_COLOURS), "frameon": False}
    axis.legend(fontsize=TEXT_SIZE - 1, **above)


def _lines(axis, rows: list[dict], timed: bool) -> None:
    """Plot the first row and the rows of the first compressing type."""
    compressed = [row for row in rows[1:] if row["scale_factor"]]
    shown = [rows[0], *(row for row in compressed if row["name"] == compressed[0]["name"])]
    tokens = [row["tokens"] for row in shown]
    costs = {"cache": [row["kv_bytes"] for row in shown]}
    if timed:
        costs |= {name: [row["seconds"][name] for row in shown] for name in LINES if name != "cache"}
    else:
        costs["prefill"] = [sum(row["gflop"].values()) for row in shown]
    for name, (label, colour, marker) in LINES.items():
        if name in costs:
            relative = [cost / costs[name][0] for cost in costs[name]]
            axis.plot(tokens, relative, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.set_xticks(sorted(tokens), sorted(tokens), rotation=60)
    axis.set_xlabel(f"visual tokens ({shown[-1]['name']}; {shown[0]['name']} at {shown[0]['tokens']})")
    axis.set_title(f"cost relative to {shown[0]['tokens']} tokens", fontsize=TEXT_SIZE)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=TEXT_SIZE - 1)


def save(figure: Figure, path: Path) -> None:
    """Save the figure as path.png and path.svg."""
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_name(path.name + suffix), dpi=DOTS_PER_INCH)
