"""Turn GQA's answers into the predictions that GQA's own eval.py reads."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import write_text
from llava.eval.tasks import gqa
from llava.eval.tasks.shared import answers_by_id


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers, JSON lines")
    parser.add_argument("--dst", type=Path, required=True, help="testdev_balanced_predictions.json")
    args = parser.parse_args(argv)
    return exit_code(lambda: write_text(args.dst, gqa.submission(answers_by_id(args.src))))


if __name__ == "__main__":
    raise SystemExit(main())
