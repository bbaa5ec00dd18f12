"""Turn the answers of llava.eval.eval_docvqa into the file that DocVQA's server takes."""

import argparse
from pathlib import Path

from llava.command import exit_code
from llava.eval.records import read_jsonl, write_text
from llava.eval.tasks import docvqa
from llava.eval.tasks.shared import answers_by_id


def convert(source: str, target: Path) -> None:
    rows = [{"question_id": row["questionId"], "text": row["answer"]} for row in read_jsonl(source)]
    write_text(target, docvqa.submission(answers_by_id(rows)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help='JSON lines {"questionId", "answer"}')
    parser.add_argument("--dst", type=Path, required=True, help="JSON to write")
    args = parser.parse_args(argv)
    return exit_code(lambda: convert(args.src, args.dst))


if __name__ == "__main__":
    raise SystemExit(main())
