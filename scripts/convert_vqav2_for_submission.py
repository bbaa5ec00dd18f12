"""Turn VQAv2's answers into the file that the evaluation server takes.

    python scripts/convert_vqav2_for_submission.py --split llava_vqav2_mscoco_test-dev2015 --ckpt NAME

reads DIR/answers/SPLIT/NAME/merge.jsonl and writes DIR/answers_upload/SPLIT/NAME.json.
"""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import load_answers, load_questions, texts_by_id, write_text
from llava.eval.tasks import vqav2


def convert(folder: Path, split: str, ckpt: str) -> None:
    test_ids = vqav2.read_test_ids(folder)
    merged = folder / "answers" / split / ckpt / "merge.jsonl"
    answers = texts_by_id(load_questions(folder / f"{split}.jsonl"), load_answers(merged), merged)
    path = folder / "answers_upload" / split / f"{ckpt}.json"
    write_text(path, vqav2.submission(answers, test_ids))
    print(f"{path}: {len(answers)} answers to {len(test_ids)} test questions")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"))
    parser.add_argument("--ckpt", required=True, help="the model's name")
    parser.add_argument("--split", required=True, help="name of a question file in DIR, without .jsonl")
    args = parser.parse_args(argv)
    return exit_code(lambda: convert(args.dir, args.split, args.ckpt))


if __name__ == "__main__":
    raise SystemExit(main())
