"""docs/performance.md: its commands are parsed before heavy imports, and its places match the commands."""

import re
from pathlib import Path

import pytest

from llava.benchmark import __main__ as benchmark
from llava.benchmark import machine, projectors, servers
from llava.benchmark.speed import command, training

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python -m llava\.benchmark ([^`#\n]+)", PAGE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_parses(line, monkeypatch):
    given = []
    for module in (command, machine, projectors, servers, training):
        monkeypatch.setattr(module, "run", given.append)
    benchmark.main(line.split())
    assert len(given) == 1


def test_each_place_has_an_end_and_a_command_below_it_that_fills_it():
    places = re.findall(r"^<!-- (?!end )(\S+) -->$", PAGE, flags=re.M)
    assert len(places) > 5
    for place in places:
        content = PAGE.split(f"<!-- {place} -->\n", 1)[1].split(f"<!-- end {place} -->", 1)[0]
        if not content:  # the next run with --docs fills it
            continue
        if place == "gpu_report":
            assert content.startswith("`bash scripts/gpu_report.sh`, ")
            continue
        kind, shape, *marks = place.split("_")
        subcommand = {"count": "speed"}.get(kind, kind)
        line = content.splitlines()[0]
        assert line.startswith(f"`python -m llava.benchmark {subcommand} --shape {shape} "), place
        assert ("--count_only" in line) == (kind == "count")
        assert ("--layers" in line) == any(mark.endswith("layers") for mark in marks)
