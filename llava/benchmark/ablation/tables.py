"""A study's tables: accuracy by family with intervals over seeds, tokens, GFLOP and training time."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava.benchmark.ablation.settings import Row, Study, Table
from llava.benchmark.timing import table


@dataclass(frozen=True)
class Line:
    """The results of a row at one s, over all seeds.

    Attributes:
        row: the row of the study.
        scale_factor: s; None: the projector does not compress.
        tokens: visual tokens of a picture.
        gflop: the projector's GFLOP for one picture.
        seconds: training time, mean over the seeds.
        families: maps a family to its accuracies 0..1, one for each seed.
        means: the means over the families, one for each seed.
        seeds: the seeds, in the same order.
    """

    row: Row
    scale_factor: int | None
    tokens: int
    gflop: float
    seconds: float
    families: dict[str, list[float]]
    means: list[float]
    seeds: list[int]


def lines_of(study: Study, results: Iterable[dict]) -> list[Line]:
    """One line for each row and s with results: rows in the study's order, within a row most tokens first."""
    gathered: dict[tuple, list[tuple[dict, dict]]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        for scored in result["scores"]:
            gathered.setdefault((result["name"], scored["scale_factor"]), []).append((result, scored))
    lines = []
    for row in study.rows:
        found = [key for key in gathered if key[0] == row.name]
        for key in sorted(found, key=lambda key: -gathered[key][0][1]["tokens"]):
            lines.append(_line(row, key[1], gathered[key]))
    return lines


def _line(row: Row, scale_factor: int | None, results: list[tuple[dict, dict]]) -> Line:
    families = {
        family: [scored["families"][family][0] / scored["families"][family][1] for _, scored in results]
        for family in results[0][1]["families"]
    }
    return Line(
        row,
        scale_factor,
        results[0][1]["tokens"],
        results[0][1]["gflop"],
        statistics.mean(result["seconds"] for result, _ in results),
        families,
        [statistics.mean(values) for values in zip(*families.values(), strict=True)],
        [result["seed"] for result, _ in results],
    )


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95% interval of a mean over seeds, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def mean_text(values: Sequence[float], signed: bool = False) -> str:
    """The mean with its interval in per cent, such as "61.3 ± 0.8"."""
    half = half_width(values)
    mean = f"{100 * statistics.mean(values):{'+' if signed else ''}.1f}"
    return mean if half is None else f"{mean} ± {100 * half:.1f}"


def as_markdown(study: Study, results: Iterable[dict]) -> str:
    """All tables of the study as Markdown; rows without results are left out and named below them."""
    lines = lines_of(study, results)
    parts = [f"**{title}**\n\n{_table(study, wanted, lines)}" for title, wanted in study.tables.items()]
    missing = [row.name for row in study.rows if row.name not in {line.row.name for line in lines}]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _table(study: Study, wanted: Table, lines: list[Line]) -> str:
    shown = [line for name in wanted.rows for line in lines if line.row.name == name]
    if wanted.scale_factors is not None:
        shown = [line for line in shown if line.scale_factor in wanted.scale_factors]
    families = list(dict.fromkeys(family for line in shown for family in line.families))
    head = [*(wanted.marks or ["row"]), "tokens", "mean"]
    if study.reference:
        head.append(f"against {study.reference}")
    head += [*families, "GFLOP", "minutes", "seeds"]
    body = []
    for line in shown:
        cells: list = [line.row.marks.get(mark, "") for mark in wanted.marks] or [line.row.name]
        cells += [line.tokens, mean_text(line.means)]
        if study.reference:
            cells.append(_difference(study.reference, line, lines))
        cells += [f"{100 * statistics.mean(line.families[family]):.1f}" for family in families]
        cells += [f"{line.gflop:.2f}", f"{line.seconds / 60:.1f}", len(line.seeds)]
        body.append(cells)
    return table(head, body)


def _difference(reference: str, line: Line, lines: list[Line]) -> str:
    """Mean of the differences to the reference at the same s, seed by seed, in points, with its interval."""
    if line.row.name == reference:
        return "–"
    at = (reference, line.scale_factor)
    other = next((other for other in lines if (other.row.name, other.scale_factor) == at), None)
    theirs = dict(zip(other.seeds, other.means, strict=True)) if other else {}
    pairs = [mean - theirs[seed] for seed, mean in zip(line.seeds, line.means, strict=True) if seed in theirs]
    return mean_text(pairs, signed=True) if pairs else ""
