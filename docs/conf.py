"""Sphinx's settings for the documentation site. `bash scripts/docs.sh` builds it."""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]  # site_pages, site_parts; the package of this clone

import site_pages  # noqa: E402
import site_parts  # noqa: E402
from pygments.lexers import JsonLexer, TextLexer  # noqa: E402

from llava.quiet import quiet_libraries  # noqa: E402

quiet_libraries()

project = "VisualPrism"
author = "the contributors of LLaVA with VisualPrism"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results"]  # the files of GPU measurements, which docs/performance.md shows
root_doc = "index"

# Pages are Markdown as GitHub shows it: its anchors of headings, and pictures as <img> with a width
myst_heading_anchors = 4
myst_enable_extensions = ["html_image", "attrs_block"]

# Docstrings are plain text in Google's style. `name` is code, and site_pages.plain_docstring escapes * and _
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False

smartquotes_action = "De"  # dashes and dots; quotes stay as they are, because texts show code
html_theme = "furo"
html_title = "VisualPrism"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
REPOSITORY = os.environ.get("REPOSITORY_URL", "").rstrip("/")


def read_page(app, name: str, source: list[str]) -> None:
    """Fill the page's generated parts, and let its links that leave docs/ lead to the repository."""
    folder = (FOLDER / name).parent
    source[0] = site_pages.link_to_repository(site_parts.fill(source[0]), folder, REPOSITORY)


def shorten_signature(app, what, name, subject, options, arguments: str | None, returned: str | None):
    """Write `...` for a default that is made anew for each object; "<factory>" would not parse."""
    return arguments and arguments.replace("<factory>", "..."), returned


def setup(app) -> None:
    app.add_lexer("jsonl", JsonLexer)
    app.add_lexer("csv", TextLexer)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", site_pages.plain_docstring, priority=100)  # before napoleon
