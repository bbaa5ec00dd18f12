"""The results of one model in one folder: results.json, report.md and report.html, from each task's files.

In that folder, TASK/result.json holds scores, settings, times and versions, TASK/credits.jsonl holds the
credit of each answer, and TASK/samples.json holds sample answers, including their pictures.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from llava.errors import UserError
from llava.eval.page import embed_bytes, environment, package_versions
from llava.eval.records import as_recorded_now, changes, images_of, write_jsonl
from llava.eval.report_template import HTML, MARKDOWN
from llava.eval.session import Answered, Session
from llava.eval.task import Scores, Task
from llava.eval.tasks.shared import read_json
from llava.wholefile import write_text

NUM_SHOWN = 60  # sample answers in the report, over all tasks
WRONG_SHARE = 0.75  # fraction of wrong answers among them, if there are enough of both
MAX_PICTURES = 4  # per answer
THUMBNAIL = 240  # pixels of the longer side
MAX_TEXT = 1500  # characters of a question or an answer

# The published comparison: PUBLISHED maps tasks to columns, AVERAGED are the tasks in its average
PUBLISHED = {"gqa": "GQA", "vizwiz": "VizWiz", "vqav2": "VQAv2", "mmvet": "MM-Vet"}
AVERAGED = (*PUBLISHED, "pope", "mmbench")
NOT_RUN = "–"

# The forms of the files that save_result writes, for json_files.misfit
NUMBER_OR_NONE = (float, type(None))
SCORES = {
    "headline": [str, ...],
    "table": {str: {str: {"value": float, "low": float, "high": float, "total": int}}},
    "points": [str],
    "unparsed": int,
}
RESULT = {
    **dict.fromkeys(("name", "title", "model_id", "model_path", "submit_to"), str),
    **dict.fromkeys(("limit", "visual_tokens", "server_score"), NUMBER_OR_NONE),
    "settings": dict,
    "questions": int,
    "skipped": [[object]],
    "timing": {"answers": int, "seconds": float},
    "versions": {str: str},
    "submission": [str],
    "scores": (SCORES, type(None)),
}
SAMPLE = {"question": str, "said": str, "expected": str, "credit": NUMBER_OR_NONE, "pictures": [str]}


def read_results(folder: Path) -> list[dict]:
    """Read what `save_result` wrote below a folder, sorted by task name.

    Raises:
        UserError: if a file is damaged.
    """
    return [_read_result(file) for file in sorted(folder.glob("*/result.json"))]


def _read_result(path: Path) -> dict:
    result = _read(path, RESULT)
    scores = result["scores"]
    is_whole = all(len(pair) == 2 and isinstance(pair[1], str) for pair in result["skipped"])
    if scores:
        part, measure = (scores["headline"] * 2)[:2]
        is_whole &= measure in scores["table"].get(part, {}) and all(scores["table"].values())
    if not is_whole:
        raise UserError(f"{path} has been damaged or changed; {_anew(path)}.")
    return result


def _read(path: Path, form: object) -> Any:
    try:
        return read_json(path, form)
    except UserError as error:
        raise UserError(f"{error} To repair it, {_anew(path)}.") from None


def _anew(path: Path) -> str:
    return f"remove {path.parent / 'result.json'} and evaluate that task again; its answers are kept"


def check_folder(folder: Path, model_id: str, settings: dict) -> None:
    """Raise UserError if a folder holds results of another model or under other settings."""
    now = {"model_id": model_id, **settings}
    for result in read_results(folder):
        before = as_recorded_now({"model_id": result["model_id"], **result["settings"]}, now)
        before.pop("max_new_tokens", None)  # differs between tasks
        if before != now:
            raise UserError(
                f"{folder} has results of {result['name']} that were made with other settings "
                f"({changes(before, now)}); choose another --output-dir, or remove that folder."
            )


def save_result(
    folder: Path,
    task: Task,
    rows: list[dict],
    answered: Answered,
    scores: Scores | None,
    files: list[Path],
    session: Session,
    data: Path,
) -> None:
    """Write the results of one task into its own folder.

    Args:
        rows: all questions that were to be asked, in order.
        scores: None if they are still to come from a server or a judge.
        files: the files of the submission.
        data: where relative image paths start.
    """
    path = folder / "result.json"
    before = _read_result(path) if path.is_file() else {}
    timing = before.get("timing") or {"answers": 0, "seconds": 0.0}
    if answered.num_new:  # a killed run left its answers, but not its time
        timing = {
            "answers": timing["answers"] + answered.num_new,
            "seconds": timing["seconds"] + answered.seconds,
        }
    result = {
        "name": task.name,
        "title": task.title,
        "model_id": session.model_id,
        "model_path": str(session.args.model_path),
        "settings": answered.settings,
        "questions": len(rows),
        "limit": session.args.limit,
        "skipped": answered.skipped,
        "visual_tokens": answered.visual_tokens or before.get("visual_tokens"),
        "timing": timing,
        "versions": package_versions() | session.devices(),
        "submission": [str(file) for file in files],
        "submit_to": task.submit_to,
        "scores": scores and scores_as_json(scores),
        # an earlier server score is only valid while no answer is new
        "server_score": dict(session.args.server_score).get(
            task.name, None if answered.num_new else before.get("server_score")
        ),
    }
    credit = scores.credit if scores else {}
    write_jsonl(folder / "credits.jsonl", ({"question_id": i, "credit": c} for i, c in credit.items()))
    write_text(folder / "samples.json", json.dumps(pick_samples(rows, answered.rows, credit, data)))
    write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def scores_as_json(scores: Scores) -> dict:
    """Return everything except the credit of each answer."""
    return {
        "headline": list(scores.headline),
        "table": {
            part: {measure: score._asdict() for measure, score in columns.items()}
            for part, columns in scores.table.items()
        },
        "points": list(scores.points),
        "unparsed": scores.unparsed,
    }


def pick_samples(rows: list[dict], answers: list[dict], credit: dict, data: Path) -> list[dict]:
    """Return up to NUM_SHOWN answers, evenly spaced over the wrong ones, then over the right ones.

    Returns:
        [{"question", "said", "expected", "credit" or None, "pictures": data: addresses}].
    """
    said = {row["question_id"]: row["text"] for row in answers}
    asked = [row for row in rows if row["question_id"] in said]
    return [
        {
            "question": row["text"][:MAX_TEXT],
            "said": said[row["question_id"]][:MAX_TEXT],
            "expected": _expected(row.get("answer")),
            "credit": credit.get(row["question_id"]),
            "pictures": [thumbnail(image, data) for image in images_of(row)[:MAX_PICTURES]],
        }
        for row in wrong_first(asked, [credit.get(row["question_id"]) for row in asked], NUM_SHOWN)
    ]


def wrong_first(rows: list, credits: list[float | None], count: int) -> list:
    """Return up to `count` rows; first WRONG_SHARE of them without full credit, or more if others are few."""
    wrong = [row for row, credit in zip(rows, credits, strict=True) if credit is not None and credit < 1]
    others = [row for row, credit in zip(rows, credits, strict=True) if credit is None or credit >= 1]
    num_wrong = min(len(wrong), max(round(WRONG_SHARE * count), count - len(others)))
    return spaced(wrong, num_wrong) + spaced(others, count - num_wrong)


def spaced(rows: list, count: int | None) -> list:
    """Return `count` evenly spaced rows, or all rows if there are no more or `count` is None."""
    count = len(rows) if count is None else min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _expected(answer: str | list[str] | None) -> str:
    """Return the annotated answer, or the distinct answers of several annotators, the most frequent first."""
    if not isinstance(answer, list):
        return "" if answer is None else str(answer)
    return ", ".join(sorted(dict.fromkeys(map(str, answer)), key=lambda text: -answer.count(text)))


def thumbnail(image: str | bytes, folder: Path) -> str:
    """Turn a picture into a small JPEG in a data: address."""
    from llava.eval.generation import open_image

    picture = open_image(image, folder)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return embed_bytes(buffer.getvalue(), "jpeg")


def published_table(results: list[dict]) -> dict[str, str]:
    """Map the columns of the published README's table to this model's texts, or NOT_RUN without a score."""
    headlines = {result["name"]: _headline(result)[0] for result in results}
    values = {name: headline["value"] for name, headline in headlines.items() if headline}
    tokens = sorted(result["visual_tokens"] for result in results if result["visual_tokens"])
    # with tiles the number of tokens depends on an image's size
    row = {"tokens": " to ".join(dict.fromkeys(f"{n:.0f}" for n in tokens[:1] + tokens[-1:])) or NOT_RUN}
    for name, column in PUBLISHED.items():
        row[column] = f"{values[name]:.1f}" if name in values else NOT_RUN
    complete = all(name in values for name in AVERAGED)
    mean = sum(values[name] for name in AVERAGED) / len(AVERAGED) if complete else None
    return row | {"average": NOT_RUN if mean is None else f"{mean:.1f}"}


def markdown_table(row: dict[str, str]) -> str:
    """Format one row as a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (row, ["---"] * len(row), row.values()))


def _headline(result: dict) -> tuple[dict | None, str | None, bool]:
    """Return the score to quote (a server's, if there is one), its measure, and whether it is in points."""
    if result["server_score"] is not None:
        return {"value": result["server_score"], "low": None, "high": None}, "server", False
    if not result["scores"]:
        return None, None, False
    part, measure = result["scores"]["headline"]
    in_points = measure in result["scores"]["points"]
    return _shown(result["scores"]["table"][part][measure], in_points), f"{measure}, {part}", in_points


def _shown(score: dict, is_points: bool) -> dict:
    """Convert a score to percent or points: {"value", "low", "high", "total"}."""
    factor = 1 if is_points else 100
    return score | {name: factor * score[name] for name in ("value", "low", "high")}


def _facts(result: dict, samples: list[dict]) -> dict:
    """Collect what the templates show about a task."""
    timing, facts = result["timing"], {**result, "samples": samples, "speed": None, "parts": []}
    facts["headline"], facts["measure"], facts["in_points"] = _headline(result)
    if timing["seconds"]:
        facts["speed"] = timing["answers"] / timing["seconds"]
    if result["scores"]:
        table, points = result["scores"]["table"], result["scores"]["points"]
        measures = list(dict.fromkeys(measure for columns in table.values() for measure in columns))
        facts["measures"] = measures
        facts["parts"] = [
            (part, [_shown(columns[m], m in points) if m in columns else None for m in measures])
            for part, columns in table.items()
        ]
    return facts


def write_report(folder: Path) -> str:
    """Write results.json, report.md and report.html; return the headlines and the published row as text."""
    results = read_results(folder)
    each = max(6, NUM_SHOWN // len(results))
    tasks = []
    for result in results:
        samples = _read(folder / result["name"] / "samples.json", [SAMPLE])
        tasks.append(_facts(result, wrong_first(samples, [row["credit"] for row in samples], each)))
    published = published_table(results)
    compared = bool({row["name"] for row in results} & PUBLISHED.keys())
    table = markdown_table(published)
    write_text(
        folder / "results.json",
        json.dumps({"published": published, "tasks": results}, indent=2, ensure_ascii=False) + "\n",
    )
    settings = {
        name: value
        for name, value in results[0]["settings"].items()
        if value is not None and name != "max_new_tokens"
    }
    # results of different days may be from different versions
    versions = {
        name: " / ".join(sorted({result["versions"].get(name, NOT_RUN) for result in results}))
        for name in dict.fromkeys(name for result in results for name in result["versions"])
    }
    facts = {
        "model": results[0]["model_id"],
        "model_path": results[0]["model_path"],
        "tasks": tasks,
        "tokens": published["tokens"],
        "published": published if compared else None,
        "published_table": table,
        "sampled": any(result["limit"] for result in results),
        "questions": sum(result["questions"] for result in results),
        "seconds": sum(result["timing"]["seconds"] for result in results),
        "made_with": settings | versions,
    }
    for name, template in (("report.md", MARKDOWN), ("report.html", HTML)):
        page = environment(autoescape=template is HTML).from_string(template).render(facts)
        write_text(folder / name, page)
    return "\n".join([*map(_line, tasks), *([table] if compared else [])])


def _line(task: dict) -> str:
    score = task["headline"]
    if not score:
        return f"{task['title']}: submit {', '.join(task['submission'])} to {task['submit_to']}"
    interval = "" if score["low"] is None else f" [{score['low']:.1f}, {score['high']:.1f}]"
    return (
        f"{task['title']}: {score['value']:.1f}{interval} {task['measure']}, {task['questions']:,} questions"
    )
