"""The published commands that score answer files and print or write LLaVA's tables."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from llava.errors import UserError
from llava.eval.command import print_skipped
from llava.eval.metrics import mean_score, parse_option_letter, vqa_soft_accuracy
from llava.eval.records import ANSWER, check_questions, load_answers, read_jsonl, texts_by_id
from llava.eval.session import FLAGS, Session
from llava.eval.tasks import easy_vqa, ocr_bench, pope, science_qa, textvqa
from llava.eval.tasks.shared import LETTERS
from llava.inference import add_flags
from llava.published.command import ANSWERS, GOES_ON, command
from llava.wholefile import write_text

POPE_NAMES = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1 score"}
EASY_VQA_ROWS = {"model": "model", "question_only": "question only", "majority": "majority"}


@command(
    "llava.eval.eval_pope",
    {
        "--annotation-dir": "POPE's folder with coco_pope_*.json",
        "--question-file": f"the questions, LLaVA's {pope.QUESTIONS}",
        "--result-file": ANSWERS,
    },
)
def score_pope(args: argparse.Namespace) -> None:
    """Score POPE's answers: the five measures of each category, and their means."""
    rows = pope.with_labels(pope.read_questions(args.question_file), args.annotation_dir)
    answers = texts_by_id(rows, load_answers(args.result_file), args.result_file)
    for category, measures in pope.score(rows, answers).table.items():
        print(f"Category: {category}, # samples: {measures['accuracy'].total}")
        for measure, name in POPE_NAMES.items():
            print(f"{name}: {measures[measure].value}")
        print(f"Yes ratio: {measures['yes_ratio'].value}")
        shown = ("f1", "accuracy", "precision", "recall", "yes_ratio")
        print(", ".join(f"{measures[measure].value:.3f}" for measure in shown))
        print("====================================")


def add_textvqa_results(parser: argparse.ArgumentParser) -> None:
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument("--result-file", type=Path, help=ANSWERS)
    results.add_argument("--result-dir", type=Path, help="a folder of answer files, *.jsonl")


@command("llava.eval.eval_textvqa", {"--annotation-file": textvqa.ANNOTATIONS}, add_textvqa_results)
def score_textvqa(args: argparse.Namespace) -> None:
    """Score TextVQA's answers by soft accuracy."""
    files = [args.result_file] if args.result_file else sorted(args.result_dir.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"--result-dir {args.result_dir} has no *.jsonl; give the folder of the answer files."
        )
    for file in files:
        rows = load_answers(file, {**ANSWER, "prompt": str})
        asked = [(row["question_id"], row["prompt"]) for row in rows]
        found = textvqa.find_annotations(args.annotation_file, asked)
        accuracy = mean_score(
            [vqa_soft_accuracy(row["text"], known["answers"]) for row, known in zip(rows, found, strict=True)]
        ).value
        print(f"{file.stem}\nSamples: {len(rows)}\nAccuracy: {100 * accuracy:.2f}%\n")


def analyse_science_qa(
    problems: dict[str, dict], answers: list[dict], letters: Sequence[str] = LETTERS, path: str | Path = ""
) -> list[dict]:
    """Make a row of LLaVA's analysis for each problem.

    Args:
        answers: rows {"question_id", "prompt", "text"}, exactly one for each problem.
        letters: the letters of the options.
        path: path of the answers file, for messages.
    Raises:
        UserError: as for texts_by_id, or if there are too few letters.
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


@command(
    "llava.eval.eval_science_qa",
    {
        "--base-dir": f"folder with {science_qa.PROBLEMS} and {science_qa.SPLITS}",
        "--result-file": ANSWERS,
        "--output-file": "file to write right and wrong answers to, JSON",
        "--output-result": "file to write the accuracy and the parsed options to, JSON",
        "--split": {"default": "test"},
        "--options": {"nargs": "+", "default": list(LETTERS), "help": "the options' letters"},
    },
)
def score_science_qa(args: argparse.Namespace) -> None:
    """Score ScienceQA's answers: accuracy over all questions, and over those with an image."""
    problems = science_qa.read_problems(args.base_dir, args.split)
    answers = load_answers(args.result_file, {**ANSWER, "prompt": str})
    rows = analyse_science_qa(problems, answers, args.options, args.result_file)
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


@command(
    "llava.eval.eval_easy_vqa",
    {
        "--question-file": "test questions, JSON lines",
        "--answers-file": "answers, the output of llava.eval.model_vqa_loader",
        "--train-question-file": "train questions, from which the baselines are computed",
        "--output": {"type": Path, "help": "file to write the scores to, JSON"},
    },
)
def score_easy_vqa(args: argparse.Namespace) -> None:
    """Score easy-VQA answers beside two blind baselines and print a table."""
    scores = easy_vqa.score(
        read_jsonl(args.question_file, easy_vqa.TEST_QUESTION),
        load_answers(args.answers_file),
        read_jsonl(args.train_question_file, easy_vqa.TRAIN_QUESTION),
        args.answers_file,
    )
    columns = ("overall", "color", "shape")
    print(f"{'':<14}" + "".join(f"{column:>30}" for column in columns))
    for key, name in EASY_VQA_ROWS.items():
        cells = (_cell(scores[key][column]) for column in columns)
        print(f"{name:<14}" + "".join(f"{cell:>30}" for cell in cells))
    if args.output:
        write_text(args.output, json.dumps(scores, indent=2) + "\n")
        print(f"scores: {args.output}")


def _cell(row: dict) -> str:
    """Accuracy in percent, its 95% interval, and the counts."""
    accuracy, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f} [{low:.1f}, {high:.1f}] {row['correct']}/{row['total']}"


def add_ocr_bench_flags(parser: argparse.ArgumentParser) -> None:
    own = {"image_folder": "OCRBench_Images", "max_new_tokens": ocr_bench.TASK.max_new_tokens}
    add_flags(parser, "--image_folder", "--max_new_tokens", *FLAGS, **own)


@command(
    "llava.eval.eval_ocr_bench",
    {
        "--OCRBench_file": {"type": Path, "default": Path("OCRBench/OCRBench.json"), "help": "the questions"},
        "--output_folder": {"type": Path, "default": Path("results")},
        "--save_name": {"required": True, "help": "the result's file name without .json"},
        "--num_workers": {"type": int, "help": "accepted for compatibility; it has no effect"},
    },
    add_ocr_bench_flags,
    GOES_ON,
)
def answer_ocr_bench(args: argparse.Namespace) -> None:
    """Answer and score OCRBench; write questions, "predict" and "result" to OUTPUT_FOLDER/SAVE_NAME.json."""
    rows = check_questions(ocr_bench.read_questions(args.OCRBench_file), args.OCRBench_file)
    session, kept = Session(args), args.output_folder / f"{args.save_name}.answers.jsonl"
    answered = session.answer(rows, kept, args.image_folder, args.max_new_tokens)
    if not session.processes.is_main_process:
        return
    print_skipped(answered)
    answers = {row["question_id"]: row["text"] for row in answered.rows}
    scores = ocr_bench.score([row for row in rows if row["question_id"] in answers], answers)
    results = []
    for row in rows:
        i, result = row["question_id"], {}
        if i in answers:
            result = {"predict": answers[i], "result": int(scores.credit[i])}
        results.append(row["published"] | result)
    path = args.output_folder / f"{args.save_name}.json"
    write_text(path, json.dumps(results, indent=4, ensure_ascii=False))
    for part, measures in scores.table.items():
        points = measures["points"]
        print(f"{'Final Score' if part == 'overall' else part}(Total {points.total}): {points.value}")
    print(f"results: {path}")


COMMANDS = (score_pope, score_textvqa, score_science_qa, score_easy_vqa, answer_ocr_bench)
