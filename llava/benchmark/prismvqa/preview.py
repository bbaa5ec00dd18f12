"""A contact sheet: scenes of a split with their questions and answers beneath."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from llava.benchmark.prismvqa.draw import draw_scene, font_file
from llava.benchmark.prismvqa.questions import ask_all
from llava.benchmark.prismvqa.scene import generator, sample_scene

COLUMNS, ROWS = 4, 3
MARGIN, LINE, POINTS = 12, 15, 11
WRAP = 58  # characters
TEXT_LINES = 12
COLORS = 192  # of the sheet's palette: a page of documentation need not be lossless


def write_preview(path: str | Path, *, seed: int = 0, size: int = 336, split: str = "train") -> None:
    """Draw the split's first scenes of two items and more, with all their questions, into a PNG file."""
    cell = (size + MARGIN, size + TEXT_LINES * LINE + MARGIN)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, ROWS * cell[1] + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    fonts = [ImageFont.truetype(font_file(name), POINTS) for name in ("DejaVuSans", "DejaVuSans-Bold")]
    shown, index = 0, 0
    while shown < COLUMNS * ROWS:
        scene = sample_scene(seed, split, index)
        questions = ask_all(scene, generator(seed, split, index, 1))
        index += 1
        if len(scene.items) < 2:
            continue
        left = MARGIN + shown % COLUMNS * cell[0]
        top = MARGIN + shown // COLUMNS * cell[1]
        sheet.paste(draw_scene(scene, size), (left, top))
        top += size + 4
        for question in questions:
            top = _write(pen, fonts, question.text, question.answer, left, top)
        shown += 1
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLORS, dither=Image.Dither.FLOYDSTEINBERG).save(path, "PNG", optimize=True)


def _write(pen: ImageDraw.ImageDraw, fonts, text: str, answer: str, left: int, top: int) -> int:
    """The question, and the answer in bold behind it; returns where the next line starts."""
    lines = textwrap.wrap(f"{text} ", WRAP, drop_whitespace=False)
    for line in lines:
        pen.text((left, top), line, fill=(40, 40, 40), font=fonts[0])
        top += LINE
    end = left + pen.textlength(lines[-1], font=fonts[0])
    pen.text((end + 4, top - LINE), answer, fill=(0, 90, 160), font=fonts[1])
    return top
