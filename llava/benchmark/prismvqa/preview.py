"""A contact sheet: training scenes with their questions and answers below them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from llava.benchmark.prismvqa.draw import draw_scene, font_file
from llava.benchmark.prismvqa.questions import Question, ask_all
from llava.benchmark.prismvqa.scene import generator, sample_scene

COLUMNS, ROWS = 4, 3
MARGIN, LINE, POINTS = 14, 14, 10.5
TEXT_LINES = 12
STEP = 6  # colour channels are rounded to multiples of it: a page of documentation need not be lossless


def write_preview(path: str | Path, *, seed: int = 0, size: int = 336) -> None:
    """Draw the first training scenes with two or more items, and all their questions, into a PNG file.

    Args:
        size: side of each picture in pixels.
    """
    cell = (size + MARGIN, size + TEXT_LINES * LINE + MARGIN)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, ROWS * cell[1] + MARGIN), "white")
    shown, index = 0, 0
    while shown < COLUMNS * ROWS:
        scene = sample_scene(seed, "train", index)
        if len(scene.items) > 1:
            left = MARGIN + shown % COLUMNS * cell[0]
            top = MARGIN + shown // COLUMNS * cell[1]
            picture = draw_scene(scene, size).point(lambda value: min(255, round(value / STEP) * STEP))
            sheet.paste(picture, (left, top))
            _write(sheet, ask_all(scene, generator(seed, "train", index, 1)), left, top + size + 4, size)
            shown += 1
        index += 1
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)


def _write(sheet: Image.Image, questions: list[Question], left: int, top: int, width: int) -> None:
    """Write each question with its answer in bold after it, or on the next line if there is no room."""
    pen = ImageDraw.Draw(sheet)
    plain, bold = (ImageFont.truetype(font_file(name), POINTS) for name in ("DejaVuSans", "DejaVuSans-Bold"))
    wrap = int(width / plain.getlength("n"))
    for question in questions:
        for line in textwrap.wrap(question.text, wrap):
            pen.text((left, top), line, fill=(40, 40, 40), font=plain)
            end = left + plain.getlength(f"{line}  ")
            top += LINE
        if end + bold.getlength(question.answer) > left + width:
            end, top = left + plain.getlength("  "), top + LINE
        pen.text((end, top - LINE), question.answer, fill=(0, 90, 160), font=bold)
