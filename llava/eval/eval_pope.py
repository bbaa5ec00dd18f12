"""Score POPE's answers: the five measures of each category, and their means."""

import argparse
from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import load_answers, texts_by_id
from llava.eval.tasks import pope

NAMES = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1 score"}


def evaluate(args: argparse.Namespace) -> None:
    rows = pope.with_labels(pope.read_questions(args.question_file), args.annotation_dir)
    answers = texts_by_id(rows, load_answers(args.result_file), args.result_file)
    table = pope.score(rows, answers).table
    for category, measures in table.items():
        print(f"Category: {category}, # samples: {measures['accuracy'].total}")
        for measure, name in NAMES.items():
            print(f"{name}: {measures[measure].value}")
        print(f"Yes ratio: {measures['yes_ratio'].value}")
        shown = ("f1", "accuracy", "precision", "recall", "yes_ratio")
        print(", ".join(f"{measures[measure].value:.3f}" for measure in shown))
        print("====================================")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m llava.eval.eval_pope", description=__doc__)
    add = parser.add_argument
    add("--annotation-dir", type=Path, required=True, help="POPE's folder of coco_pope_*.json")
    add("--question-file", required=True, help=f"LLaVA's {pope.QUESTIONS}")
    add("--result-file", required=True, help="answers, JSON lines")
    args = parser.parse_args(argv)
    return exit_code(lambda: evaluate(args))


if __name__ == "__main__":
    raise SystemExit(main())
