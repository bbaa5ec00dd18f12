"""Check the links of a site of HTML files: each file and each anchor inside the site must exist.

Links to other sites are not fetched.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from llava.command import Parser


class Page(NamedTuple):
    """What a file says of links: the names that links may lead to, and where its own links lead."""

    anchors: set[str]
    targets: list[str]


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.page = Page({""}, [])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag, name) == ("a", "name"):
                self.page.anchors.add(value or "")
            elif name in ("href", "src"):
                self.page.targets.append(value or "")


def read_page(file: Path) -> Page:
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.page


def broken_links(site: Path) -> list[str]:
    """Return a line for each link that leads to no file or no anchor of the site."""
    pages = {file.resolve(): read_page(file) for file in sorted(site.rglob("*.html"))}
    broken = []
    for file, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            linked = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchors = pages[linked].anchors if linked in pages else {parts.fragment}
            if not linked.is_file() or unquote(parts.fragment) not in anchors:
                broken.append(f"{file.relative_to(site.resolve())}: {target}")
    return broken


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python scripts/check_links.py", description=__doc__)
    parser.add_argument("site", type=Path, help="folder of the HTML files")
    args = parser.parse_args(argv)
    broken = broken_links(args.site)
    print(
        "\n".join(broken) or f"{args.site}: every link inside the site leads to a file and an anchor",
        flush=True,
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
