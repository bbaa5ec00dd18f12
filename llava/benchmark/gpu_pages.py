"""Puts a GPU report's results on pages: the figures with their bars (targets), then each part's table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from llava.benchmark.timing import paste, table
from llava.errors import UserError

README, PAGE = Path("README.md"), Path("docs/performance.md")
SUMMARY_PLACE, REPORT_PLACE = "gpu_summary", "gpu_report"


def fill_pages(folder: Path, titles: dict[str, str]) -> None:
    """Put the summary into README.md, and the summary and all tables into docs/performance.md.

    Args:
        titles: maps each part's name to its title, in the order of the page.
    Raises:
        UserError: if the folder has no results.
    """
    if not (folder / "parts.json").is_file():
        raise UserError(
            f"{folder} has no parts.json; give a folder of results of bash scripts/gpu_report.sh."
        )
    outcomes = json.loads((folder / "parts.json").read_text())
    text = summary(folder)
    paste(README, SUMMARY_PLACE, text)
    sections = [text]
    for name, title in titles.items():
        if (folder / f"{name}.md").is_file():
            sections.append(f"### {title}\n\n{(folder / f'{name}.md').read_text()}")
    unfinished = [f"- {titles[n]}: {o['outcome']}.\n" for n, o in outcomes.items() if o["outcome"] != "done"]
    if unfinished:
        sections.append("### Not measured, or not completely\n\n" + "".join(unfinished))
    paste(PAGE, REPORT_PLACE, "\n".join(sections))


def summary(folder: Path) -> str:
    """Return a line on the GPU, if known, and a table with a row for each measured figure that has a bar."""
    rows = [[what, bar, figure] for what, bar, figure in figures(lambda name: read(folder, name))]
    machine = read(folder, "machine")
    head = ""
    if machine is not None:
        versions = machine["versions"]
        head = (
            f"`bash scripts/gpu_report.sh`, {machine['date']}: one {machine['machine']}, "
            f"torch {versions['torch']}, transformers {versions['transformers']}, bfloat16.\n\n"
        )
    return f"{head}{table(['what', 'bar', 'measured'], rows)}"


def read(folder: Path, name: str) -> dict | None:
    """Return a part's JSON, or None if it has not written any."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def figures(part: Callable[[str], dict | None]) -> Iterator[tuple[str, str, str]]:
    """Yield (what is measured, its bar, its figure) for each figure that was measured."""
    if projectors := part("projectors_b32"):
        yield from projector_figures(projectors)
    for name, size in (("speed_7b", "one sequence"), ("speed_7b_batch16", "sixteen sequences")):
        if speed := part(name):
            yield from prefill_figures(speed, size)
    for name, title in (("step_1.5b", "stage 2 in full at 1.5B"), ("step_7b_lora", "stage 2 by LoRA at 7B")):
        for suffix, kernels in (("", ""), ("_liger", ", Liger's kernels")):
            if step := part(name + suffix):
                yield from step_figures(step, title + kernels)
    eager, compiled = part("speed_1.5b"), part("speed_1.5b_compile")
    if eager and compiled:
        ratio = compressed(eager)["seconds"]["token"] / compressed(compiled)["seconds"]["token"]
        yield (
            "tokens per second, compiled decoding relative to eager, 1.5B, one sequence",
            "at least 1.5",
            f"{ratio:.2f}",
        )


def projector_figures(projectors: dict) -> Iterator[tuple[str, str, str]]:
    rows = {row["projector"]: row for row in projectors["rows"]}
    plain = rows["visualprism_plain"]["forward_ms"]
    for name in ("visualprism", "visualprism_v2"):
        times = {"eager": rows[name]["forward_ms"], **rows[name]["forms_ms"]}
        said = ", ".join(f"{time / plain:.2f} ({form})" for form, time in times.items())
        yield f"evaluation time of {name} relative to its published form, 32 images", "at most 0.25", said


def prefill_figures(speed: dict, size: str) -> Iterator[tuple[str, str, str]]:
    row = compressed(speed)
    yield (
        f"prefill time at 7B, 144 tokens relative to 576, {size}",
        "at most 0.35",
        f"{row['prefill_ratio']:.2f}",
    )
    share = row["seconds"]["projector"] / row["seconds"]["prefill"]
    yield f"the projector's share of the prefill time with 144 tokens, {size}", "at most 2%", f"{share:.1%}"
    ratios = speed["rows"][0]["against_theirs"]
    said = ", ".join(
        f"{name.replace('_', ' ')} {ratios[name]:.2f}" for name in ("prefill", "first_token", "token")
    )
    yield f"times with 576 tokens relative to transformers' own LLaVA, {size}", "at most 1", said


def step_figures(step: dict, title: str) -> Iterator[tuple[str, str, str]]:
    row = compressed(step)
    if "step_ratio" in row:
        yield (
            f"samples per second, {title}, 144 tokens relative to 576",
            "at least 2.8",
            f"{1 / row['step_ratio']:.2f}",
        )
    if "mfu" in row:
        said = ", ".join(f"{r['mfu']:.0%} ({r['tokens']})" for r in step["rows"] if "mfu" in r)
        yield f"MFU, {title}", "at least 45%", said


def compressed(content: dict) -> dict:
    """Return the row for 144 visual tokens."""
    return next(row for row in content["rows"] if row["tokens"] == 144)


def count_tests(junit: str) -> dict:
    """Return `passed`, a number, and `failed` and `skipped`, names of tests (with the reason if skipped)."""
    cases = list(ElementTree.fromstring(junit).iter("testcase"))

    def named(*kinds: str) -> list[str]:
        found = []
        for case in cases:
            mark = next((case.find(kind) for kind in kinds if case.find(kind) is not None), None)
            if mark is not None:
                reason = f": {mark.get('message')}" if mark.tag == "skipped" else ""
                found.append(f"{case.get('classname')}::{case.get('name')}{reason}")
        return found

    failed, skipped = named("failure", "error"), named("skipped")
    return {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}
