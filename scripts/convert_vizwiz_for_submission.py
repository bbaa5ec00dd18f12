"""Turn VizWiz's answers into the file that the evaluation server takes."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import load_answers, texts_by_id, write_text
from llava.eval.tasks import vizwiz


def convert(annotation_file: str, result_file: str, upload: Path) -> None:
    rows = vizwiz.read_questions(annotation_file)
    answers = texts_by_id(rows, load_answers(result_file), result_file)
    write_text(upload, vizwiz.submission(rows, answers))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--annotation-file", required=True, help=f"the questions, {vizwiz.TEST}")
    add("--result-file", required=True, help="answers, JSON lines")
    add("--result-upload-file", type=Path, required=True, help="JSON to write")
    args = parser.parse_args(argv)
    return exit_code(lambda: convert(args.annotation_file, args.result_file, args.result_upload_file))


if __name__ == "__main__":
    raise SystemExit(main())
