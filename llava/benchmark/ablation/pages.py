"""Studies' results as files, docs/results/ablation/NAME.json, and the page whose tables are made of them."""

import json
from pathlib import Path

from llava.benchmark.ablation.tables import as_markdown
from llava.benchmark.timing import headline, paste
from llava.wholefile import write_text

RESULTS = Path("results/ablation")  # below the page's folder


def place_of(name: str) -> str:
    """The name of a study's place on the page."""
    return f"ablation_{name}"


def text_of(content: dict) -> str:
    """A study's results as Markdown: where the figures are from, and the tables."""
    number = content["runs_at_once"]
    at_once = f", {number} runs at a time" if number > 1 else ""
    return (
        f"{headline(content)}{at_once}. Accuracy in per cent on {content['score_on']} scenes; ± is the 95% "
        f"interval over seeds.\n\n{as_markdown(content)}"
    )


def keep_result(page: Path, name: str, content: dict) -> None:
    """Write a study's results to the file from which the page's tables are made."""
    write_text(page.parent / RESULTS / f"{name}.json", json.dumps(content, indent=1) + "\n")


def fill_page(page: Path) -> None:
    """Put the tables of every file of results into their places on the page.

    Raises UserError if the page lacks a place for one of them.
    """
    for file in sorted((page.parent / RESULTS).glob("*.json")):
        paste(page, place_of(file.stem), text_of(json.loads(file.read_text())))
