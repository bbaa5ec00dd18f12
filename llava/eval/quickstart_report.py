"""Write a report on a quick start: accuracy beside blind baselines, losses, tokens, heatmaps, samples, times.

    python -m llava.eval.quickstart_report --run_dir playground/quickstart

It reads what scripts/quickstart.sh left in the folder, and writes report.md, report.html (one file, including
its pictures) and loss.png there.
"""

import csv
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.command import Parser, message
from llava.errors import UserError
from llava.eval.page import embed, environment, package_versions
from llava.eval.quickstart_template import HTML, MARKDOWN
from llava.eval.report import spaced
from llava.wholefile import write_text

STAGES = {"stage1": "Stage 1: only the projector", "stage2": "Stage 2: projector and language model"}
ANSWERERS = {"model": "VisualPrism", "question_only": "question only", "majority": "most frequent answer"}
COLUMNS = ("overall", "color", "shape")
NUM_SAMPLES = 8


@dataclass(frozen=True)
class Losses:
    """One stage's training loss: `values[i]` after optimiser step `steps[i]`."""

    title: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Step:
    """One command of the run: total seconds and highest memory peak (None: not measured) of its starts."""

    name: str
    seconds: float
    peak_mib: float | None


def read(path: Path, parse: Callable[[str], Any] = json.loads):
    """Return the content of a file that the quick start made.

    Raises:
        UserError: if the file is missing or not JSON; names the file.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; first run scripts/quickstart.sh to its end.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON ({error}); remove it and run scripts/quickstart.sh again."
        ) from None


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line]


def tab_separated(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(), delimiter="\t"))


def read_losses(run_dir: Path) -> list[Losses]:
    """Read the losses of both stages from their trainer_state.json."""
    stages = []
    for name, title in STAGES.items():
        history = read(run_dir / name / "trainer_state.json")["log_history"]
        logged = [row for row in history if "loss" in row]
        stages.append(Losses(title, [row["step"] for row in logged], [row["loss"] for row in logged]))
    return stages


def read_steps(path: Path) -> list[Step]:
    """Read times.tsv, and add up the several lines of a command that was interrupted and resumed."""
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name, took, peak, _ in read(path, tab_separated):
        seconds[name] = seconds.get(name, 0.0) + float(took)
        if peak:
            peaks[name] = max(peaks.get(name, 0.0), float(peak))
    return [Step(name, total, peaks.get(name)) for name, total in seconds.items()]


def token_counts(config: dict) -> dict:
    """Compute image size, grid, patches and visual tokens from the config.json of a model folder."""
    image_size = config.get("mm_vision_image_size") or config["mm_vision_config"]["image_size"]
    grid = image_size // config["mm_vision_config"]["patch_size"]
    scale = config["scale_factor"]
    return {
        "image_size": image_size,
        "grid": grid,
        "patches": grid**2,
        "scale_factor": scale,
        "tokens": (grid // scale) ** 2,
        "projector": config["mm_projector_type"],
    }


def pick_samples(questions: list[dict], answers: list[dict], image_folder: Path) -> list[dict]:
    """Return evenly spaced questions with their answers, whether these are right or wrong."""
    from llava.eval.metrics import exact_match

    said = {row["question_id"]: row["text"] for row in answers}
    return [
        {
            "image": image_folder / row["image"],
            "question": row["text"],
            "said": said[row["question_id"]],
            "expected": row["answer"],
            "right": exact_match(said[row["question_id"]], row["answer"]),
        }
        for row in spaced(questions, NUM_SAMPLES)
    ]


def score_rows(scores: dict) -> list[dict]:
    """The accuracy table: one row per answerer, one cell {percent, low, high, correct, total} per column."""
    return [
        {
            "name": title,
            "is_model": key == "model",
            "cells": [
                {
                    "percent": 100 * scores[key][column]["accuracy"],
                    "low": 100 * scores[key][column]["low"],
                    "high": 100 * scores[key][column]["high"],
                    "correct": scores[key][column]["correct"],
                    "total": scores[key][column]["total"],
                }
                for column in COLUMNS
            ],
        }
        for key, title in ANSWERERS.items()
    ]


def describe_machine() -> dict[str, str]:
    """Describe the platform, cores, memory, GPU and the versions of Python and relevant packages."""
    import psutil
    import torch

    machine = {
        "machine": f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB memory",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    return machine | package_versions()


def plot_losses(stages: list[Losses], path: Path) -> None:
    """Draw the logged losses, one panel per stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9), layout="constrained", dpi=160)
    for axis, stage, colour in zip(
        figure.subplots(1, len(stages)), stages, ("#4f46e5", "#0d9488"), strict=True
    ):
        axis.plot(stage.steps, stage.values, color=colour, linewidth=1.6)
        axis.set_title(stage.title, fontsize=10, loc="left")
        axis.set_xlabel("optimiser step", fontsize=9)
        axis.set_ylabel("training loss", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def memory(mib: float | None) -> str:
    """Format a number of MiB as 1.23 GiB."""
    return f"{mib / 1024:.2f} GiB" if mib else "not measured"


def gather(run_dir: Path, image_folder: Path) -> dict:
    """Collect everything that the page shows, under the names that its templates use.

    Raises:
        UserError: if a file is missing or unreadable; names the file.
    """
    scores = read(run_dir / "scores.json")
    steps = read_steps(run_dir / "times.tsv")
    losses = read_losses(run_dir)
    plot_losses(losses, run_dir / "loss.png")
    settings_file = run_dir / "settings.txt"
    model, blind = scores["model"]["overall"], scores["question_only"]["overall"]
    return {
        "rows": score_rows(scores),
        "columns": COLUMNS,
        "accuracy": 100 * model["accuracy"],
        "interval": (100 * model["low"], 100 * model["high"]),
        "total": model["total"],
        "lead": 100 * (model["accuracy"] - blind["accuracy"]),
        "tokens": token_counts(read(run_dir / "stage2" / "config.json")),
        "losses": losses,
        "loss_plot": run_dir / "loss.png",
        "heatmaps": sorted((run_dir / "heatmap").glob("*/*.png")),
        "samples": pick_samples(
            read(run_dir / "questions.jsonl", json_lines),
            read(run_dir / "answers.jsonl", json_lines),
            image_folder,
        ),
        "steps": steps,
        "seconds": sum(step.seconds for step in steps),
        "peak_mib": max((step.peak_mib for step in steps if step.peak_mib), default=None),
        "settings": settings_file.read_text(encoding="utf-8").split() if settings_file.is_file() else [],
        "made_with": describe_machine(),
    }


def write_report(run_dir: Path, image_folder: Path) -> tuple[Path, Path]:
    """Write report.md and report.html into `run_dir` and return their paths. Raises as `gather` does."""
    facts = gather(run_dir, image_folder)
    plain, escaping = environment(autoescape=False), environment(autoescape=True)
    for made in (plain, escaping):
        made.filters |= {
            "memory": memory,
            "embed": embed,
            "relative": lambda path: path.relative_to(run_dir),
        }
    markdown, html = run_dir / "report.md", run_dir / "report.html"
    write_text(markdown, plain.from_string(MARKDOWN).render(facts))
    write_text(html, escaping.from_string(HTML).render(facts))
    return markdown, html


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m llava.eval.quickstart_report", description=__doc__)
    parser.add_argument(
        "--run_dir", type=Path, default=Path("playground/quickstart"), help="the run's folder"
    )
    parser.add_argument(
        "--image_folder",
        type=Path,
        default=Path("playground/packages/easy_vqa/easy_vqa/data"),
        help="folder to which the questions' image paths are relative",
    )
    options = parser.parse_args(arguments)
    try:
        markdown, html = write_report(options.run_dir, options.image_folder)
    except UserError as error:
        sys.exit(message(error, "quickstart_report"))
    print(f"report: {html} and {markdown}")


if __name__ == "__main__":
    main()
