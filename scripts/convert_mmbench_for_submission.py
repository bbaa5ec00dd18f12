"""Turn MMBench's answers, RESULT_DIR/EXPERIMENT.jsonl, into the spreadsheet that the server takes."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import load_answers, texts_by_id
from llava.eval.tasks import mmbench


def convert(annotation_file: str, result_file: Path, upload: Path) -> None:
    questions = mmbench.read_questions(annotation_file, instruction="")
    # --all-rounds asked with rotated options, too
    rows = [row for row in load_answers(result_file) if row.get("round_id", 0) == 0]
    mmbench.write_submission(questions, texts_by_id(questions, rows, result_file), upload)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--annotation-file", required=True, help="the questions, a tsv")
    add("--result-dir", type=Path, required=True, help="folder of answers, JSON lines")
    add("--upload-dir", type=Path, required=True, help="folder to write EXPERIMENT.xlsx to")
    add("--experiment", required=True, help="the model's name")
    args = parser.parse_args(argv)
    files = args.result_dir / f"{args.experiment}.jsonl", args.upload_dir / f"{args.experiment}.xlsx"
    return exit_code(lambda: convert(args.annotation_file, *files))


if __name__ == "__main__":
    raise SystemExit(main())
