"""Score SEED-Bench's answers and turn them into the leaderboard's file."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import load_answers, write_text
from llava.eval.tasks import seed
from llava.eval.tasks.shared import by_id


def convert(annotation_file: str, result_file: str, upload: Path) -> None:
    answered = load_answers(result_file)
    answers = by_id(answered, result_file)
    rows = seed.annotate(answered, annotation_file)
    for part, measures in seed.score(rows, answers).table.items():
        print(f"{part}: {100 * measures['accuracy'].value:.2f}%")
    write_text(upload, seed.submission(rows, answers))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--annotation-file", required=True, help=seed.ANNOTATIONS)
    add("--result-file", required=True, help="answers, JSON lines")
    add("--result-upload-file", type=Path, required=True, help="JSON lines to write")
    args = parser.parse_args(argv)
    return exit_code(lambda: convert(args.annotation_file, args.result_file, args.result_upload_file))


if __name__ == "__main__":
    raise SystemExit(main())
