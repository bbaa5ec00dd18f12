"""The parts that all report pages share: frame, style sheet, text formats and package versions."""

import base64
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")
STYLE = """\
:root { --ink: #16181d; --soft: #5d6470; --line: #e4e6eb; --page: #f6f7f9; --card: #fff; --accent: #4f46e5;
  --good: #0d9488; --bad: #dc2626; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --soft: #9aa2b1; --line: #2b2f3a; --page: #12141a; --card: #1a1d25;
    --accent: #8b85ff; --good: #2dd4bf; --bad: #f87171; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 60px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.02em; }
h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 12px; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px;
  margin-top: 18px; overflow-x: auto; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px;
  margin-top: 22px; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px 18px; }
.fact b { display: block; font-size: 26px; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: 13px; }
.fact.first b { color: var(--accent); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 12px 9px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
tr:last-child td { border-bottom: 0; }
td small { display: block; color: var(--soft); font-size: 12.5px; }
.bar { height: 6px; border-radius: 3px; background: var(--line); margin: 5px 0 3px; max-width: 220px; }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--soft); opacity: .6; }
.note { margin: 12px 0 0; }
.model td { font-weight: 600; } .model small { font-weight: 400; }
.model .bar i { background: var(--accent); opacity: 1; }
img.wide { width: 100%; border-radius: 8px; display: block; }
figure { margin: 0 0 16px; } figcaption { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px; }
.sample { border: 1px solid var(--line); border-radius: 10px; padding: 12px; }
.sample img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  image-rendering: pixelated; }
.sample p { margin: 8px 0 2px; }
.right { color: var(--good); font-weight: 600; } .wrong { color: var(--bad); font-weight: 600; }
code { font-size: 13px; overflow-wrap: anywhere; }
"""
# Templates extend it as "page" and fill its blocks; `made_with` maps names to values
PAGE = f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{% block title %}}{{% endblock %}}</title>
<style>
{STYLE}{{% block style %}}{{% endblock %}}
</style>
</head>
<body>
<main>
{{% block content %}}{{% endblock %}}

<section>
<h2>Made with</h2>
<table>
{{% for name, value in made_with.items() %}}
<tr><td>{{{{ name }}}}</td><td>{{{{ value }}}}</td></tr>
{{% endfor %}}
{{% block made_with %}}{{% endblock %}}
</table>
</section>
</main>
</body>
</html>
"""


def environment(autoescape: bool):
    """Make a Jinja environment with PAGE, and with clock and cell as filters; `autoescape` is for HTML."""
    from jinja2 import DictLoader, Environment

    made = Environment(
        loader=DictLoader({"page": PAGE}),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )
    made.filters |= {"clock": clock, "cell": cell}
    return made


def clock(seconds: float) -> str:
    """Format a time as 12.3 s or 3 min 05 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def cell(text: str) -> str:
    """Format a text, perhaps a model's answer, for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def embed_bytes(content: bytes, kind: str) -> str:
    """Turn an encoded picture into a data: address, so that the page is one file; `kind` is jpeg or png."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def embed(path: Path) -> str:
    """Turn a picture file into a data: address."""
    return embed_bytes(path.read_bytes(), "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that answers depend on."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
