"""A run's table and the sentences below it."""

from __future__ import annotations

from llava.benchmark.timing import headline, table

PART_NAMES = {"tower": "tower", "projector": "projector", "language_model": "language model"}


def as_markdown(rows: list[dict], about: dict) -> str:
    """The run's provenance, a table with a row for each projector and s, and sentences about the rows."""
    size = (
        f"{about['shape']}, {about['layers']} of {about['full_layers']} layers; batch {about['batch_size']}, "
        f"{about['text_tokens']} tokens of text, {about['new_tokens']} of answer, decode {about['decode']}, "
        f"{about['time']} time"
    )
    if "seconds" not in rows[0]:
        size = (
            f"{about['shape']}, {about['layers']} layers; batch {about['batch_size']}, "
            f"{about['text_tokens']} tokens of text; counted, not measured"
        )
        return f"{headline(about)}; {size}.\n\n{_counted(rows)}"
    sentences = [*_shares(rows, about), *_theirs(rows)]
    if "largest_batch" in rows[0]:
        sentences.append(
            "Largest batch: the most sequences whose prefill and cache of the whole answer fit into "
            f"{about['memory_gib']:.0f} GiB, {rows[0]['largest_batch_by']}."
        )
    return f"{headline(about)}; {size}.\n\n{_timed(rows)}\n" + "".join(f"- {s}\n" for s in sentences)


def scaled(row: dict, about: dict) -> dict[str, float]:
    """Seconds of each part of prefill; the language model's are scaled to its full number of layers."""
    factor = about["full_layers"] / about["layers"]
    parts = {part: row["seconds"][part] for part in PART_NAMES}
    return {**parts, "language_model": factor * parts["language_model"]}


def _timed(rows: list[dict]) -> str:
    columns = ["projector", "s", "tokens", "tower, ms", "projector, ms", "language model, ms", "prefill, ms"]
    columns += [
        "relative to 576",
        "first token, ms",
        "decode, tokens/s",
        "cache, MiB",
        "largest batch",
        "GFLOP",
    ]
    cells = []
    for row in rows:
        seconds = row["seconds"]
        times = [_ms(seconds[name]) for name in (*PART_NAMES, "prefill")]
        ratio = f"{row['prefill_ratio']:.2f}" if "prefill_ratio" in row else "–"
        line = [row["name"], row["scale_factor"] or "–", row["tokens"], *times, ratio]
        line += [_ms(seconds["first_token"]), f"{1 / seconds['token']:.1f}", _mib(row["kv_bytes"])]
        line += [row.get("largest_batch", "–"), f"{sum(row['gflop'].values()):.1f}"]
        cells.append(line)
    return table(columns, cells)


def _counted(rows: list[dict]) -> str:
    columns = ["projector", "s", "tokens", "tower, GFLOP", "projector, GFLOP", "language model, GFLOP"]
    columns += ["prefill, GFLOP", "relative to 576", "projector's share", "cache, MiB", "of the image, MiB"]
    cells, full = [], sum(rows[0]["gflop"].values())
    for row in rows:
        total = sum(row["gflop"].values())
        cells.append(
            [row["name"], row["scale_factor"] or "–", row["tokens"]]
            + [f"{row['gflop'][part]:.1f}" for part in PART_NAMES]
            + [f"{total:.1f}", f"{total / full:.3f}", f"{row['gflop']['projector'] / total:.2%}"]
            + [_mib(row["kv_bytes"]), _mib(row["image_kv_bytes"])]
        )
    return table(columns, cells)


def _shares(rows: list[dict], about: dict) -> list[str]:
    """The projector's share of prefill; for a truncated shape also prefill extrapolated to all layers."""
    parts = {id(row): scaled(row, about) for row in rows}
    shares = [
        f"{parts[id(row)]['projector'] / sum(parts[id(row)].values()):.1%} ({_label(row)})" for row in rows
    ]
    sentences = [
        f"The projector's share of the time of tower, projector and language model: {', '.join(shares)}."
    ]
    if about["layers"] < about["full_layers"]:
        full = sum(parts[id(rows[0])].values())
        ratios = [f"{sum(parts[id(row)].values()) / full:.2f} ({_label(row)})" for row in rows[1:]]
        sentences[0] = (
            f"Extrapolated to {about['full_layers']} layers (the language model's time multiplied by "
            f"{about['full_layers'] / about['layers']:g}): {sentences[0]} Prefill relative to 576 tokens: "
            f"{', '.join(ratios)}."
        )
    return sentences


def _theirs(rows: list[dict]) -> list[str]:
    ratios = rows[0].get("against_theirs")
    if ratios is None:
        return []
    names = {"prefill": "prefill", "first_token": "first token", "token": "each later token"}
    said = ", ".join(f"{text} {ratios[name]:.3f}" for name, text in names.items())
    return [f"Times of {rows[0]['name']} relative to transformers' own LLaVA, with the same weights: {said}."]


def _label(row: dict) -> str:
    return f"{row['name']} {row['tokens']}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.2f}" if num_bytes < 10 * 2**20 else f"{num_bytes / 2**20:.0f}"
