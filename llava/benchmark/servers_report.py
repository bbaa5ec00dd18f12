"""The report of several servers: a table of rates and waits, and a picture of one server's budgets."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from llava.benchmark.timing import median, table

DOTS_PER_INCH = 150
TEXT_SIZE = 9
COLOUR = "#0072B2"


def shown(results: list[dict]) -> str:
    """Return the results as a Markdown table."""
    columns = ["server", "s", "visual tokens", "answers/s", "tokens/s", "first token, ms"]
    columns += ["95% of them within, ms", "equal"]
    formats = {"answers_a_second": ".2f", "tokens_a_second": ".1f"}
    formats |= {"first_token_ms": ".0f", "first_token_p95_ms": ".0f"}
    cells = []
    for row in results:
        figures = [format(median(row["rounds"], name), digits) for name, digits in formats.items()]
        budget = [row["scale_factor"] or "the model's", row["visual_tokens"] or "-"]
        cells.append([row["server"], *budget, *figures, row["equal"] or "-"])
    return table(columns, cells)


def compared(server: str, rows: list[dict], texts: list[str], expected: list[str]) -> str:
    """Return how many answers are equal to the expected ones; print the others."""
    differing = [
        (row["question_id"], text, other)
        for row, text, other in zip(rows, texts, expected, strict=True)
        if text != other
    ]
    for question_id, text, other in differing:
        print(f"{server}, question {question_id}: {text!r}; in the file {other!r}")
    return f"{len(rows) - len(differing)} of {len(rows)}"


@dataclass(frozen=True)
class Budget:
    """What a server gave at one budget.

    Attributes:
        tokens: visual tokens of a view.
        scale_factor: s; None for the model's own.
        answer: its answer to the question.
        first_token_ms: the wait for a first token, in milliseconds.
    """

    tokens: int
    scale_factor: int | None
    answer: str
    first_token_ms: float

    @classmethod
    def of(cls, row: dict) -> Budget:
        """Take the first question's answer from a result."""
        wait = median(row["rounds"], "first_token_ms")
        return cls(row["visual_tokens"], row["scale_factor"], row["rounds"][0]["texts"][0], wait)

    @property
    def name(self) -> str:
        of_s = "" if self.scale_factor is None else f", s = {self.scale_factor}"
        return f"{self.tokens} visual tokens{of_s}"


def draw(path: Path, image_file: Path, question: str, budgets: list[Budget]) -> None:
    """Write a PNG: the image with the tokens' grid and the answer at each budget, and bars of the waits."""
    from matplotlib.figure import Figure

    from llava.pictures import load_image

    image = load_image(image_file)
    figure = Figure(figsize=(2.6 * len(budgets), 4.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 1.1])
    above.suptitle(question, fontsize=TEXT_SIZE + 2)
    for axis, budget in zip(above.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
        axis.imshow(image, extent=(0, 1, 0, 1), aspect=image.height / image.width)
        if image.width == image.height:
            draw_grid(axis, budget.tokens)
        axis.set_title(budget.name, fontsize=TEXT_SIZE, pad=8)
        axis.set_xlabel(f"“{budget.answer}”", fontsize=TEXT_SIZE + 1)
        axis.set_xticks([])
        axis.set_yticks([])
    draw_waits(below.subplots(), budgets)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


def draw_grid(axis, tokens: int) -> None:
    """Draw the regions of the tokens over a square image, if they are a square grid."""
    side = isqrt(tokens)
    if side**2 != tokens:
        return
    for place in range(1, side):
        for line in (axis.axhline, axis.axvline):
            line(place / side, color="gray", linewidth=0.6, alpha=0.7)


def draw_waits(axis, budgets: list[Budget]) -> None:
    waits = [budget.first_token_ms for budget in budgets]
    bars = axis.barh([budget.name for budget in budgets], waits, color=COLOUR)
    axis.bar_label(bars, [f"{wait:.0f} ms" for wait in waits], padding=3, fontsize=TEXT_SIZE)
    axis.invert_yaxis()
    axis.set_xlabel("time to the first token, ms", fontsize=TEXT_SIZE)
    axis.tick_params(labelsize=TEXT_SIZE)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
