"""The documentation site: its table of contents, the parts that are made from the code, and its links."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import site_pages
import site_parts
from messages import assert_names

from llava.__main__ import COMMANDS
from llava.inference import FLAGS
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SETTINGS = runpy.run_path(str(DOCS / "conf.py"))
PAGES = {
    page.relative_to(DOCS).with_suffix("").as_posix(): page.read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md")
    if page.relative_to(DOCS).parts[0] not in SETTINGS["exclude_patterns"]
}


def rows(text: str) -> dict[str, list[str]]:
    """The first cell of each row of a page's tables to the other cells."""
    cells = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return {first.strip("`"): others for first, *others in cells}


def test_the_table_of_contents_names_every_page_once():
    trees = re.findall(r"^```{toctree}\n(.*?)^```$", PAGES["index"], flags=re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted([*listed, "index"]) == sorted(PAGES)


def test_each_generated_part_has_one_place():
    places = [name for text in PAGES.values() for name in site_parts.PLACE.findall(text)]
    assert sorted(places) == sorted(site_parts.PARTS)


def test_the_reference_has_every_flag_of_the_trainer():
    listed = rows(site_parts.fill(PAGES["reference/training_flags"]))
    known = {
        f"--{f.name}" for kind in (ModelArguments, DataArguments, TrainingArguments) for f in fields(kind)
    }
    assert known <= listed.keys()
    assert listed["--lora_r"] == ["int", "`64`", "Rank r of the adapters."]
    assert listed["--learning_rate"][0] == "`5e-05`"
    assert "from the last checkpoint" in listed["--resume_from_checkpoint"][0]


def test_the_reference_has_every_flag_of_inference_with_the_commands_that_take_it():
    listed = rows(site_parts.fill(PAGES["reference/inference_flags"]))
    assert {flag.strip("-").replace("-", "_") for flag in listed} == FLAGS.keys()
    assert listed["--num_beams"][0] == "`1`"
    assert listed["--num_beams"][2] == "eval"
    assert listed["--model-name"][2] == "web, serve"


def test_the_reference_has_the_help_of_every_command_and_script():
    commands = site_parts.fill(PAGES["reference/commands"])
    assert set(re.findall(r"^## (\w+)$", commands, flags=re.M)) == COMMANDS.keys() - {"train"}
    assert "--with_code" in commands
    scripts = site_parts.fill(PAGES["reference/scripts"])
    assert {"scripts/quickstart.sh", "scripts/launch.sh", "scripts/v1_5/eval/gqa.sh"} <= set(
        re.findall(r"^## (\S+)$", scripts, flags=re.M)
    )
    assert "scripts/help.sh" not in scripts


def test_cells_of_a_table_show_a_text_as_it_is():
    assert site_parts.plain("a|b <c> *d* `e_f` g_h --i-j") == r"a\|b \<c\> \*d\* `e_f` g\_h `--i-j`"


@pytest.mark.parametrize(
    ("text", "without", "with_repository"),
    [
        (
            "[rules](../README.md#x) y",
            "rules (`README.md`) y",
            "[rules](https://h/o/n/blob/HEAD/README.md#x) y",
        ),
        ("[README.md](../README.md)", "`README.md`", "[README.md](https://h/o/n/blob/HEAD/README.md)"),
        *(
            (same, same, same)
            for same in ("[data](data.md#a)", "![web](../assets/web.png)", "[x](https://x.y)")
        ),
        ("```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)
def test_a_link_that_leaves_docs_leads_to_the_repository_or_shows_the_path(text, without, with_repository):
    assert site_pages.link_to_repository(text, DOCS, "") == without
    assert site_pages.link_to_repository(text, DOCS, "https://h/o/n") == with_repository


def test_a_link_of_a_tutorial_starts_from_its_own_folder():
    folder = DOCS / "tutorials"
    assert site_pages.link_to_repository("[data](../data.md)", folder, "") == "[data](../data.md)"
    assert site_pages.link_to_repository("[R](../../README.md)", folder, "") == "R (`README.md`)"


def test_a_docstrings_plain_text_is_escaped_and_its_code_is_not():
    lines = ["`a*b` of s**2 patches, some_ of *them*, |x|, by --scale_factor; mm_utils stays"]
    site_pages.plain_docstring(None, "function", "f", None, None, lines)
    assert lines == [
        r"`a*b` of s\*\*2 patches, some\_ of \*them\*, \|x\|, by `--scale_factor`; mm_utils stays"
    ]


@pytest.mark.slow
def test_broken_links_inside_a_site_are_named(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"><a href="part/b.html#there"><img src="x.png"><a href="https://x.y/z#q">'
    )
    (tmp_path / "part" / "b.html").write_text(
        '<a href="../a.html#here"><a href="../a.html#gone"><a href="c.html">'
    )
    check = [sys.executable, ROOT / "scripts/check_links.py", tmp_path]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        *("a.html: part/b.html#there", "a.html: x.png"),
        *("part/b.html: ../a.html#gone", "part/b.html: c.html"),
    ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs Sphinx (extra docs)")
def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path):
    site = tmp_path / "site"
    done = subprocess.run(
        ["bash", ROOT / "scripts/docs.sh"],
        env=os.environ | {"INSTALL": "0", "PYTHON": sys.executable, "OUTPUT_DIR": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in PAGES if not (site / f"{name}.html").is_file()] == []
    reference = (site / "reference/training_flags.html").read_text(encoding="utf-8")
    assert "--mm_projector_type" in reference
    assert "load_pretrained_model" in (site / "reference/python_models.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_folder_that_holds_something_else_is_not_replaced_by_the_site(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run(
        ["bash", ROOT / "scripts/docs.sh"],
        env=os.environ | {"INSTALL": "0", "PYTHON": "none", "OUTPUT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert_names(done.stderr, tmp_path, "OUTPUT_DIR")
    assert (tmp_path / "thesis.txt").read_text() == "mine"
