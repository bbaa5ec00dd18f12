"""Score easy-VQA answers beside two blind baselines and print a table."""

import json
from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import load_answers, read_jsonl, write_text
from llava.eval.tasks.easy_vqa import TEST_QUESTION, TRAIN_QUESTION, score

ROWS = {"model": "model", "question_only": "question only", "majority": "majority"}


def table(scores: dict) -> str:
    """The scores as a small text table: accuracy in percent, 95% interval, counts."""
    lines = [f"{'':<14}{'overall':>30}{'color':>30}{'shape':>30}"]
    for key, name in ROWS.items():
        cells = (_cell(scores[key][column]) for column in ("overall", "color", "shape"))
        lines.append(f"{name:<14}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def _cell(row: dict) -> str:
    accuracy, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f} [{low:.1f}, {high:.1f}] {row['correct']}/{row['total']}"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--question-file", required=True, help="test questions, JSON lines")
    parser.add_argument("--answers-file", required=True, help="what llava.eval.model_vqa_loader wrote")
    parser.add_argument("--train-question-file", required=True, help="train questions: the baselines' source")
    parser.add_argument("--output", help="write the scores here as JSON")
    args = parser.parse_args(argv)

    def score_all() -> None:
        scores = score(
            read_jsonl(args.question_file, TEST_QUESTION),
            load_answers(args.answers_file),
            read_jsonl(args.train_question_file, TRAIN_QUESTION),
            args.answers_file,
        )
        print(table(scores))
        if args.output:
            write_text(Path(args.output), json.dumps(scores, indent=2) + "\n")
            print(f"scores: {args.output}")

    return exit_code(score_all)


if __name__ == "__main__":
    raise SystemExit(main())
