"""Turn MM-Vet's answers into the file that its evaluator reads."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import write_text
from llava.eval.tasks import mmvet
from llava.eval.tasks.shared import answers_by_id


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers, JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help='JSON {"v1_0": answer, ...} to write')
    args = parser.parse_args(argv)
    return exit_code(lambda: write_text(args.dst, mmvet.submission(answers_by_id(args.src))))


if __name__ == "__main__":
    raise SystemExit(main())
