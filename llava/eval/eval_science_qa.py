"""Score ScienceQA's answers: accuracy over all questions, and over those with an image."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from llava.command import Parser, exit_code
from llava.errors import UserError
from llava.eval.metrics import parse_option_letter
from llava.eval.records import ANSWER, load_answers, texts_by_id, write_text
from llava.eval.tasks import science_qa
from llava.eval.tasks.shared import LETTERS


def analyse(
    problems: dict[str, dict], answers: list[dict], letters: Sequence[str] = LETTERS, path: str | Path = ""
) -> list[dict]:
    """A row of LLaVA's analysis for each problem.

    Args:
        answers: rows {"question_id", "prompt", "text"}, exactly one for each problem.
        letters: names of the options.
        path: of the answers, for messages.
    Raises:
        UserError: as texts_by_id; or if there are too few letters.
    """
    most = max(len(problem["choices"]) for problem in problems.values())
    if len(letters) < most:
        raise UserError(
            f"--options: a question has {most} choices, got {len(letters)} letters; give one for each."
        )
    texts = texts_by_id([{"question_id": i} for i in problems], answers, path)
    prompts = {row["question_id"]: row["prompt"] for row in answers}
    rows = []
    for i, problem in problems.items():
        letter = parse_option_letter(texts[i], letters[: len(problem["choices"])])
        rows.append(
            {
                "question_id": i,
                "parsed_ans": letter or "FAILED",
                "ground_truth": letters[problem["answer"]],
                "question": prompts[i],
                "pred": texts[i],
                "is_multimodal": "<image>" in prompts[i],
            }
        )
    return rows


def evaluate(args: argparse.Namespace) -> None:
    problems = science_qa.read_problems(args.base_dir, args.split)
    answers = load_answers(args.result_file, {**ANSWER, "prompt": str})
    rows = analyse(problems, answers, args.options, args.result_file)
    correct = [row for row in rows if row["parsed_ans"] == row["ground_truth"]]
    incorrect = [row for row in rows if row["parsed_ans"] != row["ground_truth"]]
    with_image, right_with_image = (sum(row["is_multimodal"] for row in part) for part in (rows, correct))
    accuracy = 100 * len(correct) / len(rows)
    on_images = f"{100 * right_with_image / with_image:.2f}%" if with_image else "no images"
    print(
        f"Total: {len(rows)}, Correct: {len(correct)}, Accuracy: {accuracy:.2f}%, IMG-Accuracy: {on_images}"
    )
    parsed = {row["question_id"]: row["parsed_ans"] for row in rows}
    result = {
        "acc": accuracy,
        "correct": len(correct),
        "count": len(rows),
        "results": {i: -1 if said == "FAILED" else args.options.index(said) for i, said in parsed.items()},
        "outputs": {row["question_id"]: row["pred"] for row in rows},
    }
    write_text(args.output_file, json.dumps({"correct": correct, "incorrect": incorrect}, indent=2))
    write_text(args.output_result, json.dumps(result, indent=2))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m llava.eval.eval_science_qa", description=__doc__)
    add = parser.add_argument
    add("--base-dir", type=Path, required=True, help=f"{science_qa.PROBLEMS} and {science_qa.SPLITS}")
    add("--result-file", required=True, help="answers, JSON lines")
    add("--output-file", type=Path, required=True, help="right and wrong answers, JSON")
    add("--output-result", type=Path, required=True, help="accuracy and what was parsed, JSON")
    add("--split", default="test")
    add("--options", nargs="+", default=list(LETTERS), help="the options' letters")
    args = parser.parse_args(argv)
    return exit_code(lambda: evaluate(args))


if __name__ == "__main__":
    raise SystemExit(main())
