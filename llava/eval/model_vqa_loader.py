"""Answer a question file with a model, in batches, into a JSON-lines file.

Killed anywhere, the same command goes on where it stopped; when nothing is left to do no model is loaded.
"""

import argparse
import sys

from llava.eval.records import get_chunk, load_questions
from llava.eval.session import Session, add_flags


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.model_vqa_loader", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--question-file", required=True, help='JSON lines {"question_id", "image", "text"}')
    add("--image-folder", default="", help="where the questions' image paths start")
    add("--answers-file", required=True, help="JSON lines, continued if it exists")
    add("--num-chunks", type=int, default=1, help="parts the questions are split into, one a process")
    add("--chunk-idx", type=int, default=0, help="which part this process answers, from 0")
    add("--max_new_tokens", type=int, default=128, help="longest answer, tokens")
    add_flags(parser)
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> list[tuple]:
    """Answer all questions of this chunk that have no answer yet; complete the answers file.

    Returns:
        (question_id, reason) of those left out, always empty under --on_bad_record fail.
    Raises:
        ValueError: for what the user can mend; says how. The answers so far stay in the file.
    """
    questions = get_chunk(load_questions(args.question_file), args.num_chunks, args.chunk_idx)
    session = Session(args)
    return session.answer(questions, args.answers_file, args.image_folder, args.max_new_tokens).skipped


def print_skipped(skipped: list[tuple]) -> None:
    """Name the questions that were left out, and count them."""
    for question_id, reason in skipped:
        print(f"skipped question {question_id}: {reason}")
    if skipped:
        print(f"{len(skipped)} question(s) skipped")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        skipped = evaluate(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_skipped(skipped)
    print(f"answers: {args.answers_file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
