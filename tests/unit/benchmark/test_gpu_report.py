"""No part of a GPU report affects another, and the pages show the measured figures. Parts are stand-ins."""

import json
from importlib import import_module

import pytest

from llava.benchmark import gpu_pages, gpu_report
from llava.benchmark.__main__ import main
from llava.benchmark.gpu_report import PARTS, Part, run_parts
from llava.errors import UserError

PRODUCTS = "machine --device cpu --repeats 1"
ABOUT = {
    "command": "python -m llava.benchmark",
    "date": "2026-11-27",
    "machine": "NVIDIA H100 80GB HBM3",
    "device": "cuda",
    "dtype": "bfloat16",
    "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
}
JUNIT = """<testsuites><testsuite>
<testcase classname="gpu.test_a" name="one"/>
<testcase classname="gpu.test_a" name="two"><failure message="x">y</failure></testcase>
<testcase classname="gpu.test_b" name="three"><skipped message="no peft">z</skipped></testcase>
</testsuite></testsuites>"""


def test_each_part_is_a_command_that_parses(monkeypatch):
    given = []
    monkeypatch.setattr(
        import_module("llava.benchmark.commands"), "exit_code", lambda call: given.append(call) or 0
    )
    for part in PARTS:
        if part.command is not None:
            assert main(part.command.split()) == 0
    assert len(given) == len(PARTS) - 1
    assert len({part.name for part in PARTS}) == len(PARTS)


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_does_not_affect_later_parts(tmp_path):
    parts = [
        Part("fails", "step --shape none", 900, "A"),
        Part("hangs", "speed --shape 7b --device cpu", 1, "B"),
        Part("lacks", PRODUCTS, 900, "C", ("no_such_package",)),
        Part("products", PRODUCTS, 900, "D"),
    ]
    outcomes = {name: outcome["outcome"] for name, outcome in run_parts(parts, tmp_path, 3000).items()}
    assert outcomes == {
        "fails": "failed with exit code 2",
        "hangs": "ended after 1 s",
        "lacks": "left out, because no_such_package is not installed",
        "products": "done",
    }
    assert json.loads((tmp_path / "products.json").read_text())["command"].endswith(PRODUCTS)
    late = run_parts([Part("late", PRODUCTS, 900, "E")], tmp_path, 0)
    assert late["late"]["outcome"] == "left out, because the time was over"
    assert json.loads((tmp_path / "parts.json").read_text()).keys() == {*outcomes, "late"}


def test_tests_are_counted_by_name():
    assert gpu_pages.count_tests(JUNIT) == {
        "passed": 1,
        "failed": ["gpu.test_a::two"],
        "skipped": ["gpu.test_b::three: no peft"],
    }


def write(folder, name, **content):
    (folder / f"{name}.json").write_text(json.dumps(ABOUT | content))
    (folder / f"{name}.md").write_text(f"table of {name}\n")


@pytest.fixture
def results(tmp_path):
    """The results of a report that ended after a training step."""
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder, "machine")
    rows = [("visualprism_plain", 8.0), ("visualprism", 4.0), ("visualprism_v2", 2.0)]
    write(
        folder,
        "projectors_b32",
        rows=[{"projector": n, "forward_ms": ms, "forms_ms": {"graph": ms / 2}} for n, ms in rows],
    )
    speed = {"tokens": 144, "prefill_ratio": 0.33, "seconds": {"projector": 0.01, "prefill": 1.0}}
    ratios = {"prefill": 0.97, "first_token": 0.98, "token": 1.01}
    write(folder, "speed_7b", rows=[{"tokens": 576, "against_theirs": ratios}, speed])
    steps = [{"tokens": 576, "mfu": 0.5}, {"tokens": 144, "mfu": 0.46, "step_ratio": 0.4}]
    write(folder, "step_1.5b", rows=steps)
    write(folder, "step_7b_lora", rows=[{"tokens": 576}, {"tokens": 144, "mfu": 0.4}])
    outcomes = {
        "machine": {"outcome": "done", "seconds": 1},
        "tests": {"outcome": "ended after 9 s", "seconds": 9},
    }
    (folder / "parts.json").write_text(json.dumps(outcomes))
    return folder


def test_the_summary_sets_each_figure_beside_its_bar(results):
    lines = gpu_pages.summary(results).splitlines()
    assert lines[0].startswith(
        "`bash scripts/gpu_report.sh`, 2026-11-27: one NVIDIA H100 80GB HBM3, torch 2.11.0"
    )
    assert "0.50 (eager), 0.25 (graph)" in lines[4]
    figures = [line.rsplit("| ", 1)[1].rstrip(" |") for line in lines[5:]]
    assert figures == [
        "0.25 (eager), 0.12 (graph)",
        "0.33",
        "1.0%",
        "prefill 0.97, first token 0.98, token 1.01",
        "2.50",
        "50% (576), 46% (144)",
        "40% (144)",
    ]


def test_pages_are_filled_from_the_files_alone(results, tmp_path, monkeypatch):
    for page, place in (("README.md", "gpu_summary"), ("performance.md", "gpu_report")):
        (tmp_path / page).write_text(f"before\n<!-- {place} -->\n<!-- end {place} -->\nafter\n")
    monkeypatch.setattr(gpu_pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(gpu_pages, "PAGE", tmp_path / "performance.md")
    for _ in range(2):  # the second time, over the results of the first
        assert main(["gpu_report", "--docs", "--output_dir", str(results)]) == 0
        readme, page = ((tmp_path / name).read_text() for name in ("README.md", "performance.md"))
        assert readme.count("| what | bar | measured |") == page.count("| what | bar | measured |") == 1
        assert "### Projectors, 32 images\n\ntable of projectors_b32\n" in page
        assert page.index("table of machine") < page.index("table of step_1.5b")
        assert "- Tests of tests/gpu: ended after 9 s.\n" in page
        assert page.endswith("after\n")


def test_a_folder_without_results_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no parts\.json"):
        gpu_pages.fill_pages(tmp_path, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nvidia-smi.*--output_dir"):
        gpu_report.card_name()
