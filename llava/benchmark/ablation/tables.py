"""A study's tables: accuracy by family with intervals over seeds, tokens, GFLOP and training time.

First the numbers are collected in a form for JSON; the Markdown is made of that form alone. So a page can be
filled from a file of results without the runs.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava.benchmark.ablation.settings import Row, Study
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


def collect(study: Study, results: Iterable[dict]) -> dict:
    """The study's tables as JSON values: `tables`, and `missing`, the names of rows without results.

    A table has its title, its reference, its marks and its lines. Accuracies, their differences to the
    reference and the half-widths of the intervals over seeds are in per cent; None: there is none.
    """
    lines = lines_of(study, results)
    tables = [
        {
            "title": title,
            "reference": study.reference,
            "marks": list(wanted.marks),
            "lines": [
                _numbers(line, study.reference, lines)
                for name in wanted.rows
                for line in lines
                if line.row.name == name
                and (wanted.scale_factors is None or line.scale_factor in wanted.scale_factors)
            ],
        }
        for title, wanted in study.tables.items()
    ]
    missing = [row.name for row in study.rows if row.name not in {line.row.name for line in lines}]
    return {"tables": tables, "missing": missing}


def _numbers(line: Line, reference: str | None, lines: list[Line]) -> dict:
    """A line of a table as JSON values."""
    pairs = _differences(reference, line, lines)
    return {
        "row": line.row.name,
        "marks": dict(line.row.marks),
        "rate": line.row.projector_learning_rate,
        "tokens": line.tokens,
        "mean": 100 * statistics.mean(line.means),
        "interval": _in_per_cent(half_width(line.means)),
        "difference": 100 * statistics.mean(pairs) if pairs else None,
        "difference_interval": _in_per_cent(half_width(pairs)),
        "families": {family: 100 * statistics.mean(values) for family, values in line.families.items()},
        "gflop": line.gflop,
        "minutes": line.seconds / 60,
        "seeds": len(line.seeds),
    }


def _in_per_cent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _differences(reference: str | None, line: Line, lines: list[Line]) -> list[float]:
    """The differences to the reference at the same s, seed by seed; none for the reference itself."""
    if line.row.name == reference:
        return []
    at = (reference, line.scale_factor)
    other = next((other for other in lines if (other.row.name, other.scale_factor) == at), None)
    theirs = dict(zip(other.seeds, other.means, strict=True)) if other else {}
    return [mean - theirs[seed] for seed, mean in zip(line.seeds, line.means, strict=True) if seed in theirs]


def as_markdown(content: dict) -> str:
    """What `collect` gives, as Markdown; rows without results are named below the tables."""
    parts = [f"**{one['title']}**\n\n{_table(one)}" for one in content["tables"]]
    if content["missing"]:
        parts.append(f"Not run yet: {', '.join(content['missing'])}.\n")
    return "\n".join(parts)


def _table(content: dict) -> str:
    lines, reference, marks = content["lines"], content["reference"], content["marks"]
    families = list(dict.fromkeys(family for line in lines for family in line["families"]))
    has_rates = any(line["rate"] is not None for line in lines)
    head = [*(marks or ["row"]), *(["rate"] if has_rates else []), "tokens", "mean"]
    head += [f"against {reference}"] if reference else []
    head += [*families, "GFLOP", "minutes", "seeds"]
    body = []
    for line in lines:
        cells: list = [line["marks"].get(mark, "") for mark in marks] or [line["row"]]
        if has_rates:
            cells.append("" if line["rate"] is None else f"{line['rate']:g}")
        cells += [line["tokens"], _with_interval(f"{line['mean']:.1f}", line["interval"])]
        if reference:
            cells.append(_difference(line, reference))
        cells += [f"{line['families'][family]:.1f}" for family in families]
        cells += [f"{line['gflop']:.2f}", f"{line['minutes']:.1f}", line["seeds"]]
        body.append(cells)
    return table(head, body)


def _difference(line: dict, reference: str) -> str:
    if line["row"] == reference:
        return "–"
    if line["difference"] is None:
        return ""
    return _with_interval(f"{line['difference']:+.1f}", line["difference_interval"])


def _with_interval(mean: str, half: float | None) -> str:
    """A mean with its interval, such as "61.3 ± 0.8"."""
    return mean if half is None else f"{mean} ± {half:.1f}"
