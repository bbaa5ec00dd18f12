"""Answer MMBench's questions, which hold their images, into a JSON-lines file."""

import argparse

from llava.eval.command import AnswerCommand, add_single_pred_prompt
from llava.eval.tasks import mmbench


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_single_pred_prompt(parser)
    parser.add_argument(
        "--lang", choices=sorted(mmbench.INSTRUCTIONS), default="en", help="language of that request"
    )
    parser.add_argument("--all-rounds", action="store_true", help="ask once for each rotation of the options")


def load(args: argparse.Namespace) -> list[dict]:
    instruction = mmbench.INSTRUCTIONS[args.lang] if args.single_pred_prompt else ""
    return mmbench.read_questions(args.question_file, instruction, args.all_rounds)


COMMAND = AnswerCommand(
    module="llava.eval.model_vqa_mmbench",
    description=__doc__,
    questions="MMBench's tsv, e.g. mmbench_dev_20230712.tsv",
    load=load,
    own_flags=add_flags,
)

if __name__ == "__main__":
    raise SystemExit(COMMAND.main())
