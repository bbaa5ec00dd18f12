"""Prepares pages and docstrings for Sphinx: links that leave docs/, flags, and plain text."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.[^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```)$", re.M | re.S)


def link_to_repository(text: str, folder: Path, repository: str) -> str:
    """Change the links of a Markdown page that lead out of docs/.

    With a repository's address they lead there. Otherwise the path is shown as code, without a link. Links
    between pages, pictures and blocks of code stay as they are.

    Args:
        text: the page.
        folder: the folder of the page, from which its links start.
        repository: for example https://github.com/OWNER/NAME; "" if there is none.
    """

    def changed(match: re.Match) -> str:
        shown, target, anchor = match.groups()
        path = (folder / target).resolve()
        if path.is_relative_to(DOCS):
            return match.group()
        name = path.relative_to(DOCS.parent).as_posix()
        if repository:
            return f"[{shown}]({repository}/blob/HEAD/{name}{anchor or ''})"
        return f"`{name}`" if shown == name else f"{shown} (`{name}`)"

    parts = FENCE.split(text)  # every second one is a block of code
    parts[::2] = [LINK.sub(changed, part) for part in parts[::2]]
    return "".join(parts)


def flags_as_code(text: str) -> str:
    """Put flags into backquotes, where they are not in any; otherwise their hyphens would become a dash."""
    return re.sub(r"`[^`]*`|(?<![\w-])(--[a-zA-Z][\w-]*)", lambda m: f"`{m[1]}`" if m[1] else m[0], text)


def plain_docstring(app, what, name, subject, options, lines: list[str]) -> None:
    """Escape what reStructuredText would read as markup, in a docstring that is plain text with `code`."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", flags_as_code(line))
        parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)
