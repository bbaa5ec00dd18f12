"""Score TextVQA's answers by soft accuracy."""

from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.metrics import mean_score, vqa_soft_accuracy
from llava.eval.records import ANSWER, load_answers
from llava.eval.tasks import textvqa


def evaluate(annotation_file: Path, result_file: Path) -> None:
    rows = load_answers(result_file, {**ANSWER, "prompt": str})
    found = textvqa.find_annotations(annotation_file, [(row["question_id"], row["prompt"]) for row in rows])
    accuracy = mean_score(
        [vqa_soft_accuracy(row["text"], known["answers"]) for row, known in zip(rows, found, strict=True)]
    ).value
    print(f"{result_file.stem}\nSamples: {len(rows)}\nAccuracy: {100 * accuracy:.2f}%\n")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m llava.eval.eval_textvqa", description=__doc__)
    add = parser.add_argument
    add("--annotation-file", type=Path, required=True, help=textvqa.ANNOTATIONS)
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument("--result-file", type=Path, help="answers, JSON lines")
    results.add_argument("--result-dir", type=Path, help="a folder of such files, *.jsonl")
    args = parser.parse_args(argv)
    files = [args.result_file] if args.result_file else sorted(args.result_dir.glob("*.jsonl"))
    if not files:
        parser.error(f"--result-dir {args.result_dir} holds no *.jsonl")

    def score_all() -> None:
        for file in files:
            evaluate(args.annotation_file, file)

    return exit_code(score_all)


if __name__ == "__main__":
    raise SystemExit(main())
