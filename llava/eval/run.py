"""Evaluate a model on benchmarks, and write a report with scores, intervals and answers to look at.

    python -m llava.eval.run --model-path MODEL --tasks gqa,pope,textvqa
    accelerate launch -m llava.eval.run --model-path MODEL --tasks all       several GPUs

If a run is killed, the same command continues where it stopped, on any number of GPUs. Other tasks are added
to the report of the same --output-dir. Without --max_new_tokens each benchmark has its own maximum answer
length.
"""

import argparse
from pathlib import Path

from llava.command import Parser, exit_code, positive
from llava.errors import UserError
from llava.eval import report
from llava.eval.judge import Judge
from llava.eval.records import check_questions, texts_by_id
from llava.eval.session import FLAGS, Answered, Session, read_config
from llava.eval.task import Scores, Task
from llava.eval.tasks import TASKS
from llava.inference import add_flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.eval.run", description=__doc__)
    add = parser.add_argument
    add("--tasks", required=True, help=f"benchmarks, separated by commas, or all: {', '.join(TASKS)}")
    add(
        "--data-root",
        type=Path,
        default=Path("playground/data/eval"),
        help="folder with one folder for each benchmark",
    )
    add(
        "--output-dir",
        type=Path,
        help="folder for answers, submissions and the report; default: playground/eval/MODEL, with the "
        "values of --scale_factor and --limit added",
    )
    add(
        "--list",
        action=_List,
        nargs=0,
        help="print the files that each task needs and their sources, and stop",
    )
    add(
        "--server-score",
        type=server_score,
        action="append",
        default=[],
        metavar="TASK=PERCENT",
        help="score that a server gave to a task's submission, for example vqav2=76.3, which the report then "
        "shows; may be given once for each task",
    )
    add("--limit", type=positive, help="ask only this many questions of each task, evenly spaced over it")
    add(
        "--judge-url",
        help="OpenAI-compatible endpoint of the judge, for example http://localhost:8000/v1",
    )
    add("--judge-model", help="name of the judge at --judge-url")
    add("--judge-key-env", default="OPENAI_API_KEY", help="environment variable with the key for --judge-url")
    add_flags(parser, "--max_new_tokens", *FLAGS, max_new_tokens=None)
    args = parser.parse_args(argv)
    if bool(args.judge_url) != bool(args.judge_model):
        parser.error("--judge-url and --judge-model need each other; give both, or neither")
    if args.server_score and args.limit:
        parser.error("--server-score is the score of a whole benchmark; leave --limit out")
    return args


class _List(argparse.Action):
    """Acts like --help, so that the required flags may be missing."""

    def __call__(self, parser, namespace, values, option_string=None):
        print("\n".join(task.describe(namespace.data_root) for task in TASKS.values()))
        parser.exit()


def server_score(text: str) -> tuple[str, float]:
    """Parse a --server-score value: the name of a task with a submission, and its score in percent."""
    submitted = [task.name for task in TASKS.values() if task.submit_to]
    name, _, number = text.partition("=")
    try:
        score = float(number)
    except ValueError:
        score = -1.0
    if name not in submitted or not 0 <= score <= 100:
        raise argparse.ArgumentTypeError(
            f"must be TASK=PERCENT, for example vqav2=76.3, TASK one of {', '.join(submitted)}, got {text!r}"
        )
    return name, score


def choose_tasks(names: str) -> list[Task]:
    """Return the tasks of a --tasks value, in the order of TASKS.

    Raises:
        UserError: for an unknown name or no name; lists the known ones.
    """
    chosen = {name.strip() for name in names.split(",") if name.strip()}
    if chosen == {"all"}:
        return list(TASKS.values())
    if unknown := sorted(chosen - TASKS.keys()):
        raise UserError(
            f"--tasks: unknown task {', '.join(unknown)}; choose from {', '.join(TASKS)}, or all."
        )
    if not chosen:
        raise UserError(f"--tasks is empty; choose from {', '.join(TASKS)}, or all.")
    return [task for name, task in TASKS.items() if name in chosen]


def check_files(tasks: list[Task], data_root: Path) -> None:
    """Raise UserError if files are missing; it names all of them, and the tasks that have all their files."""
    missing = {task.name: task.missing(data_root) for task in tasks}
    lines = [line for found in missing.values() for line in found]
    if lines:
        ready = ", ".join(name for name, found in missing.items() if not found) or "none"
        raise UserError(
            "\n  ".join([f"{len(lines)} file(s) are missing; tasks with all their files: {ready}.", *lines])
        )


def limited(rows: list[dict], limit: int | None) -> list[dict]:
    """Return `limit` evenly spaced rows; rows of a "group" count as one, because they are scored together."""
    groups = [row.get("group", row["question_id"]) for row in rows]
    kept = set(report.spaced(list(dict.fromkeys(groups)), limit))
    return [row for row, group in zip(rows, groups, strict=True) if group in kept]


def output_dir(args: argparse.Namespace) -> Path:
    """Return --output-dir, or else a folder named after the model, scale factor and limit."""
    if args.output_dir:
        return args.output_dir
    from llava.mm_utils import get_model_name_from_path

    marks = [f"-s{args.scale_factor}"] * bool(args.scale_factor) + [f"-limit{args.limit}"] * bool(args.limit)
    name = get_model_name_from_path(str(Path(args.model_path).resolve()))
    return Path("playground/eval", name + "".join(marks))


def evaluate(args: argparse.Namespace) -> None:
    """Ask, score and report all chosen tasks.

    Raises:
        UserError: for a problem that the user can fix; says how.
    """
    tasks = choose_tasks(args.tasks)
    if idle := {name for name, _ in args.server_score} - {task.name for task in tasks}:
        raise UserError(f"--server-score {', '.join(sorted(idle))} is not among --tasks; add it there.")
    check_files(tasks, args.data_root)
    read_config(args.model_path)  # fails on a wrong folder before torch is imported
    session, folder = Session(args), output_dir(args)
    report.check_folder(folder, session.model_id, session.settings)
    judge = None
    if args.judge_url:
        judge = Judge(args.judge_url, args.judge_model, args.judge_key_env, folder / "judge.jsonl")
    for task in tasks:
        rows, answered = ask(task, session, args, folder)
        if session.processes.is_main_process:
            own, data = folder / task.name, args.data_root / task.folder
            scores, files = settle(task, rows, answered, judge, own)
            report.save_result(own, task, rows, answered, scores, files, session, data)
    if session.processes.is_main_process:
        print(report.write_report(folder))
        print(f"report: {folder / 'report.html'}")
    session.processes.destroy_process_group()  # gloo's threads may abort a process that ends while they run


def ask(task: Task, session: Session, args: argparse.Namespace, folder: Path) -> tuple[list[dict], Answered]:
    """Ask a task's questions; return their rows and the model's answers."""
    data = args.data_root / task.folder
    rows = limited(check_questions(task.load(data), f"{task.name} ({data})"), args.limit)
    if session.processes.is_main_process:
        print(f"{task.title}: {len(rows):,} questions", flush=True)
    max_new_tokens = args.max_new_tokens or task.max_new_tokens
    return rows, session.answer(rows, folder / task.name / "answers.jsonl", data, max_new_tokens)


def settle(
    task: Task, rows: list[dict], answered: Answered, judge: Judge | None, folder: Path
) -> tuple[Scores | None, list[Path]]:
    """Return scores, if right answers or a judge are available, and the submission's files, if any."""
    skipped = {question_id for question_id, _ in answered.skipped}
    rows = [row for row in rows if row["question_id"] not in skipped]
    answers = texts_by_id(rows, answered.rows)
    scores = None
    if rows and task.score:
        scores = task.score(rows, answers)
    elif rows and task.judge and judge:
        scores = task.judge(rows, answers, judge)
    return scores, task.export(rows, answers, folder) if task.export else []


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: evaluate(args))


if __name__ == "__main__":
    raise SystemExit(main())
