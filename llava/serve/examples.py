"""Example questions with pictures, which are drawn here so that nothing is downloaded."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

SIDE = 448  # pixels


def questions() -> list[list[dict]]:
    """Rows of gradio's examples for a message box: [{"text", "files": [path]}]."""
    from PIL import Image, ImageDraw

    folder = Path(tempfile.mkdtemp(prefix="llava-examples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = []
    for name, (background, draw, text) in EXAMPLES.items():
        # drawn twice as large and scaled down, for smooth edges
        image = Image.new("RGB", (2 * SIDE, 2 * SIDE), background)
        draw(ImageDraw.Draw(image))
        image.resize((SIDE, SIDE)).save(folder / f"{name}.png")
        rows.append([{"text": text, "files": [str(folder / f"{name}.png")]}])
    return rows


def _circle(pen) -> None:
    pen.ellipse((280, 360, 560, 640), fill="#1f4fd8")


def _house(pen) -> None:
    pen.rectangle((0, 620, 896, 896), fill="#7cb66a")
    pen.ellipse((640, 80, 800, 240), fill="#ffd23f")
    pen.rectangle((220, 420, 560, 720), fill="#f2ede4")
    pen.polygon([(180, 430), (390, 240), (600, 430)], fill="#b5452c")
    pen.rectangle((350, 560, 440, 720), fill="#6b4a34")
    pen.rectangle((260, 480, 330, 550), fill="#8fc7e8")
    pen.rectangle((460, 480, 530, 550), fill="#8fc7e8")
    pen.rectangle((706, 560, 744, 730), fill="#6b4a34")
    pen.ellipse((620, 370, 830, 600), fill="#3f7f3c")


def _bars(pen) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(52)
    for i, (name, height, colour) in enumerate(
        [("Mon", 240, "#4e79a7"), ("Tue", 420, "#f28e2b"), ("Wed", 560, "#59a14f"), ("Thu", 330, "#e15759")]
    ):
        left = 110 + 180 * i
        pen.rectangle((left, 760 - height, left + 120, 760), fill=colour)
        pen.text((left + 60, 800), name, fill="#333333", font=font, anchor="mm")
    pen.line((70, 762, 810, 762), fill="#333333", width=6)
    pen.text((440, 90), "Visitors", fill="#333333", font=font, anchor="mm")


# Maps a name to (background, function that draws on a square of 2 * SIDE pixels a side, question)
EXAMPLES: dict[str, tuple[str, Callable, str]] = {
    "shape": ("#dfe7f5", _circle, "what shape is in the image?"),
    "house": ("#bfe3f7", _house, "Describe the picture."),
    "bars": ("#ffffff", _bars, "On which day did most visitors come?"),
}
