"""Answer and score OCRBench: its questions with "predict" and "result" into OUTPUT_FOLDER/SAVE_NAME.json.

Killed anywhere, the same command goes on where it stopped; when nothing is left to do no model is loaded.
"""

import argparse
import json
from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.command import print_skipped
from llava.eval.records import check_questions, write_text
from llava.eval.session import FLAGS, Session
from llava.eval.tasks import ocr_bench
from llava.inference import add_flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m llava.eval.eval_ocr_bench", description=__doc__)
    add = parser.add_argument
    add("--OCRBench_file", type=Path, default=Path("OCRBench/OCRBench.json"), help="the questions")
    add("--output_folder", type=Path, default=Path("results"))
    add("--save_name", required=True, help="the result's file name without .json")
    add("--num_workers", type=int, help="taken for compatibility; images are read ahead without it")
    own = {"image_folder": "OCRBench_Images", "max_new_tokens": ocr_bench.TASK.max_new_tokens}
    add_flags(parser, "--image_folder", "--max_new_tokens", *FLAGS, **own)
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> None:
    """Answer what is unanswered, score what is answered, write and print.

    Raises:
        UserError: for what the user can mend; says how. The answers so far are kept.
    """
    rows = check_questions(ocr_bench.read_questions(args.OCRBench_file), args.OCRBench_file)
    session, kept = Session(args), args.output_folder / f"{args.save_name}.answers.jsonl"
    answered = session.answer(rows, kept, args.image_folder, args.max_new_tokens)
    if not session.processes.is_main_process:
        return
    print_skipped(answered)
    answers = {row["question_id"]: row["text"] for row in answered.rows}
    scores = ocr_bench.score([row for row in rows if row["question_id"] in answers], answers)
    results = [
        row["published"]
        | (
            {"predict": answers[i], "result": int(scores.credit[i])}
            if (i := row["question_id"]) in answers
            else {}
        )
        for row in rows
    ]
    path = args.output_folder / f"{args.save_name}.json"
    write_text(path, json.dumps(results, indent=4, ensure_ascii=False))
    for part, measures in scores.table.items():
        points = measures["points"]
        print(f"{'Final Score' if part == 'overall' else part}(Total {points.total}): {points.value}")
    print(f"results: {path}")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: evaluate(args))


if __name__ == "__main__":
    raise SystemExit(main())
