"""The published commands that answer a file of questions with a model, into a JSON-lines file."""

import argparse
from dataclasses import replace

from llava.eval.command import AnswerCommand, add_single_pred_prompt
from llava.eval.records import load_questions
from llava.eval.tasks import docvqa, mmbench, science_qa
from llava.eval.tasks.shared import OPTION_LETTER
from llava.published.command import GOES_ON

LOADER = AnswerCommand(
    module="llava.eval.model_vqa_loader",
    description="Answer a question file with a model, in batches, into a JSON-lines file." + GOES_ON,
    questions='JSON lines {"question_id", "image", "text"}',
    load=lambda args: load_questions(args.question_file),
    max_new_tokens=128,
)


def add_mmbench_flags(parser: argparse.ArgumentParser) -> None:
    add_single_pred_prompt(parser)
    parser.add_argument(
        "--lang",
        choices=sorted(mmbench.INSTRUCTIONS),
        default="en",
        help="language of the text that --single-pred-prompt adds",
    )
    parser.add_argument("--all-rounds", action="store_true", help="ask once for each rotation of the options")


def load_mmbench(args: argparse.Namespace) -> list[dict]:
    instruction = mmbench.INSTRUCTIONS[args.lang] if args.single_pred_prompt else ""
    return mmbench.read_questions(args.question_file, instruction, args.all_rounds)


def load_science_qa(args: argparse.Namespace) -> list[dict]:
    return science_qa.read_questions(args.question_file, OPTION_LETTER if args.single_pred_prompt else "")


COMMANDS = (
    LOADER,
    replace(LOADER, module="llava.eval.model_vqa", max_new_tokens=1024),  # for open conversation
    replace(LOADER, module="llava.eval.model_vqa_loader_pope"),  # the name in VisualPrism's script for POPE
    AnswerCommand(
        module="llava.eval.model_vqa_mmbench",
        description="Answer MMBench's questions, whose file contains the images, into a JSON-lines file."
        + GOES_ON,
        questions="MMBench's tsv, for example mmbench_dev_20230712.tsv",
        load=load_mmbench,
        own_flags=add_mmbench_flags,
    ),
    AnswerCommand(
        module="llava.eval.model_vqa_science",
        description="Answer ScienceQA's questions, in LLaVA's form, into a JSON-lines file." + GOES_ON,
        questions='JSON list {"id", "conversations", "image"?}, for example llava_test_CQM-A.json',
        load=load_science_qa,
        own_flags=add_single_pred_prompt,
    ),
    AnswerCommand(
        module="llava.eval.eval_docvqa",
        description='Answer DocVQA\'s questions with a model, into JSON lines {"questionId", "answer"}.'
        + GOES_ON,
        questions="val_v1.0_withQT.json or test_v1.0.json",
        load=lambda args: docvqa.read_questions(args.question_file),
        max_new_tokens=128,
        published_row=lambda row: {"questionId": row["question_id"], "answer": row["text"]},
    ),
)
