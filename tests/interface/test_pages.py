"""The targets in the pages exist: links, sections of the specification, golden files, the tree of files."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for place in ("*.md", "playground/*.md", "docs/**/*.md", "llava/**/*.py", "scripts/**/*", "tests/**/*.py")
    for path in ROOT.glob(place)
    if path.suffix in (".md", ".py", ".sh")
)
PAGES = [file for file in FILES if file.endswith(".md")]
SPECIFICATION = "docs/specification.md"


def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The names that a link may have after `#`: the page's headings in GitHub's spelling."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / name if name else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), (
            f"{page} links to {target}"
        )


def test_each_section_of_the_specification_that_a_comment_names_exists():
    sections = set(re.findall(r"^## (\d+)\.", read(SPECIFICATION), flags=re.M))
    named = 0
    for file in FILES:
        if Path(__file__).samefile(ROOT / file):
            continue
        for numbers in re.findall(r"\bSPEC\b(?:\s+(\d+(?:(?:, | and )\d+)*))?", read(file)):
            assert numbers, f"{file} names the specification without a section"
            assert set(re.findall(r"\d+", numbers)) <= sections, f"{file} names SPEC {numbers}"
            named += 1
    assert named > 10


def test_the_specification_names_every_golden_file_and_no_other(golden):
    named = set()
    for stem, choices, ending in re.findall(
        r"`(\w+)(?:\{([\d,]+)\})?\.(json|safetensors|txt)`", read(SPECIFICATION)
    ):
        named |= {f"{stem}{choice}.{ending}" for choice in choices.split(",")}
    assert named - {"config.json"} == {path.name for path in golden.iterdir() if path.is_file()}


def tree() -> dict[str, set[str]]:
    """Maps each folder of the tree in docs/architecture.md to its names, or patterns, there."""
    block = read("docs/architecture.md").split("## The tree\n\n```\n", 1)[1].split("\n```", 1)[0]
    names: dict[str, set[str]] = {}
    folders: list[str] = []  # the folders that contain the line, one for every two spaces of its indent
    for line in block.splitlines():
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        first = line.split()[0]
        if first.endswith("/"):
            names.setdefault("/".join(folders), set()).add(first.rstrip("/"))
            folders.append(first.rstrip("/"))
            line = line.replace(first, "", 1)
        words = re.findall(r"(?<!\S)[\w*.]+(?:/|\.py|\.sh)(?=\W*(?:\s|$))", line)
        names.setdefault("/".join(folders), set()).update(word.rstrip("/") for word in words)
    return names


def test_the_tree_lists_each_module_and_script():
    """A folder without lines below it stands for all its files."""
    names, missing = tree(), []
    for file in FILES:
        path = Path(file)
        if re.fullmatch(r"(llava|scripts)/.*\.(py|sh)", file) and not path.name.startswith("__"):
            folder = next(folder for folder in path.parents if folder.as_posix() in names)
            listed = names[folder.as_posix()]
            if listed and not any(fnmatch(path.relative_to(folder).parts[0], name) for name in listed):
                missing.append(file)
    assert not missing


def test_the_tree_lists_nothing_that_is_gone():
    for folder, listed in tree().items():
        for name in listed:
            assert list((ROOT / folder).glob(name)), f"the tree has {folder}/{name}"
