"""Answer a question file with a model, in batches, into a JSON-lines file.

Killed anywhere, the same command goes on where it stopped; when nothing is left to do no model is loaded.
"""

import argparse
import sys

from llava.eval.records import get_chunk, load_questions
from llava.eval.session import Session, add_flags, positive


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
    add("--max_new_tokens", type=positive, default=128, help="longest answer, tokens")
    add_flags(parser)
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> None:
    """Answer all questions of this chunk that have no answer yet; complete the answers file.

    Raises:
        ValueError: for what the user can mend; says how. The answers so far stay in the file.
    """
    questions = get_chunk(load_questions(args.question_file), args.num_chunks, args.chunk_idx)
    session = Session(args)
    answered = session.answer(questions, args.answers_file, args.image_folder, args.max_new_tokens)
    if session.processes.is_main_process:
        for question_id, reason in answered.skipped:
            print(f"skipped question {question_id}: {reason}")
        if answered.skipped:
            print(f"{len(answered.skipped)} question(s) skipped")
        print(f"answers: {args.answers_file}")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        evaluate(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
