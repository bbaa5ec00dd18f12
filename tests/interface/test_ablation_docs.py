"""docs/ablation.md: its tables are those that the command makes of the files of results, and no others."""

import json
import re
import shutil
from pathlib import Path

import pytest
from messages import assert_names

from llava.benchmark.__main__ import main
from llava.benchmark.ablation.pages import RESULTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ablation.md"


@pytest.fixture
def page(tmp_path):
    """A copy of the page and of its results."""
    shutil.copytree(PAGE.parent / RESULTS, tmp_path / RESULTS)
    return Path(shutil.copy(PAGE, tmp_path))


def test_its_tables_are_what_the_command_makes_of_the_files(page):
    text = page.read_text()
    names = re.findall(r"^<!-- ablation_(\w+) -->$", text, flags=re.M)
    assert sorted(names) == sorted(file.stem for file in (page.parent / RESULTS).iterdir())
    outside = re.sub(r"^<!-- (ablation_\w+) -->\n.*?^<!-- end \1 -->$", "", text, flags=re.M | re.S)
    assert not re.findall(r"^\|.*", outside, flags=re.M)
    page.write_text(text.replace("\n| ", "\n| 9"))
    assert main(["ablation", "--docs", str(page)]) == 0
    assert page.read_text() == text


def test_a_file_without_a_place_on_the_page_is_named(page, capsys):
    shutil.copy(page.parent / RESULTS / "cpu.json", page.parent / RESULTS / "new.json")
    assert main(["ablation", "--docs", str(page)]) == 1
    assert_names(capsys.readouterr().err, str(page), "<!-- ablation_new -->")


def test_every_file_says_where_its_figures_are_from():
    for file in (PAGE.parent / RESULTS).iterdir():
        content = json.loads(file.read_text())
        assert content["command"].startswith("python -m llava.benchmark ablation --config scripts/ablation/")
        config = ROOT / re.search(r"--config (\S+)", content["command"])[1]
        assert config.stem == file.stem
        assert config.is_file()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date"])
