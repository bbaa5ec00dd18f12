"""Turn the answers of llava.eval.eval_docvqa into the file that DocVQA's server takes."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.json_files import ID
from llava.eval.records import load_answers, write_text
from llava.eval.tasks import docvqa
from llava.eval.tasks.shared import by_id


def convert(source: str, target: Path) -> None:
    rows = load_answers(source, {"questionId": ID, "answer": str})
    rows = [{"question_id": row["questionId"], "text": row["answer"]} for row in rows]
    write_text(target, docvqa.submission(by_id(rows, source)))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--src", required=True, help='JSON lines {"questionId", "answer"}')
    parser.add_argument("--dst", type=Path, required=True, help="JSON to write")
    args = parser.parse_args(argv)
    return exit_code(lambda: convert(args.src, args.dst))


if __name__ == "__main__":
    raise SystemExit(main())
