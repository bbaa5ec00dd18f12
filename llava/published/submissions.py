"""The published scripts that turn answer files into the files that servers and other evaluators take."""

import argparse
from pathlib import Path

from llava.eval.json_files import ID
from llava.eval.records import load_answers, load_questions, texts_by_id
from llava.eval.tasks import docvqa, gqa, mmbench, mmvet, seed, vizwiz, vqav2
from llava.eval.tasks.shared import answers_by_id, by_id
from llava.published.command import ANSWERS, command
from llava.wholefile import write_text


@command(
    "scripts/convert_docvqa_for_eval.py",
    {"--src": 'JSON lines {"questionId", "answer"}', "--dst": "JSON to write"},
)
def convert_docvqa(args: argparse.Namespace) -> None:
    """Turn the answers of llava.eval.eval_docvqa into the file that DocVQA's server takes."""
    rows = load_answers(args.src, {"questionId": ID, "answer": str})
    rows = [{"question_id": row["questionId"], "text": row["answer"]} for row in rows]
    write_text(args.dst, docvqa.submission(by_id(rows, args.src)))


@command("scripts/convert_gqa_for_eval.py", {"--src": ANSWERS, "--dst": "testdev_balanced_predictions.json"})
def convert_gqa(args: argparse.Namespace) -> None:
    """Turn GQA's answers into the predictions that GQA's own eval.py reads."""
    write_text(args.dst, gqa.submission(answers_by_id(args.src)))


@command(
    "scripts/convert_mmbench_for_submission.py",
    {
        "--annotation-file": "the questions, MMBench's tsv",
        "--result-dir": f"folder of {ANSWERS}",
        "--upload-dir": "folder to write EXPERIMENT.xlsx to",
        "--experiment": {"required": True, "help": "the model's name"},
    },
)
def convert_mmbench(args: argparse.Namespace) -> None:
    """Turn MMBench's answers, RESULT_DIR/EXPERIMENT.jsonl, into the spreadsheet that the server takes."""
    questions = mmbench.read_questions(args.annotation_file, instruction="")
    path = args.result_dir / f"{args.experiment}.jsonl"
    # with --all-rounds the file also has answers to rotated options
    rows = [row for row in load_answers(path) if row.get("round_id", 0) == 0]
    upload = args.upload_dir / f"{args.experiment}.xlsx"
    mmbench.write_submission(questions, texts_by_id(questions, rows, path), upload)


@command(
    "scripts/convert_mmvet_for_eval.py", {"--src": ANSWERS, "--dst": 'JSON {"v1_0": answer, ...} to write'}
)
def convert_mmvet(args: argparse.Namespace) -> None:
    """Turn MM-Vet's answers into the file that its evaluator reads."""
    write_text(args.dst, mmvet.submission(answers_by_id(args.src)))


@command(
    "scripts/convert_seed_for_submission.py",
    {
        "--annotation-file": seed.ANNOTATIONS,
        "--result-file": ANSWERS,
        "--result-upload-file": "JSON lines to write",
    },
)
def convert_seed(args: argparse.Namespace) -> None:
    """Score SEED-Bench's answers and turn them into the leaderboard's file."""
    answered = load_answers(args.result_file)
    answers = by_id(answered, args.result_file)
    rows = seed.annotate(answered, args.annotation_file)
    for part, measures in seed.score(rows, answers).table.items():
        print(f"{part}: {100 * measures['accuracy'].value:.2f}%")
    write_text(args.result_upload_file, seed.submission(rows, answers))


@command(
    "scripts/convert_vizwiz_for_submission.py",
    {
        "--annotation-file": f"the questions, {vizwiz.TEST}",
        "--result-file": ANSWERS,
        "--result-upload-file": "JSON to write",
    },
)
def convert_vizwiz(args: argparse.Namespace) -> None:
    """Turn VizWiz's answers into the file that the evaluation server takes."""
    rows = vizwiz.read_questions(args.annotation_file)
    answers = texts_by_id(rows, load_answers(args.result_file), args.result_file)
    write_text(args.result_upload_file, vizwiz.submission(rows, answers))


@command(
    "scripts/convert_vqav2_for_submission.py",
    {
        "--dir": {"type": Path, "default": Path("playground/data/eval/vqav2")},
        "--ckpt": {"required": True, "help": "the model's name"},
        "--split": {"required": True, "help": "name of a question file in --dir, without .jsonl"},
    },
)
def convert_vqav2(args: argparse.Namespace) -> None:
    """Turn VQAv2's answers into the file that the evaluation server takes.

        python scripts/convert_vqav2_for_submission.py --split llava_vqav2_mscoco_test-dev2015 --ckpt NAME

    reads DIR/answers/SPLIT/NAME/merge.jsonl and writes DIR/answers_upload/SPLIT/NAME.json.
    """
    test_ids = vqav2.read_test_ids(args.dir)
    merged = args.dir / "answers" / args.split / args.ckpt / "merge.jsonl"
    answers = texts_by_id(load_questions(args.dir / f"{args.split}.jsonl"), load_answers(merged), merged)
    path = args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
    write_text(path, vqav2.submission(answers, test_ids))
    print(f"{path}: {len(answers)} answers to {len(test_ids)} test questions")


COMMANDS = (
    *(convert_docvqa, convert_gqa, convert_mmbench, convert_mmvet),
    *(convert_seed, convert_vizwiz, convert_vqav2),
)
