"""Answer ScienceQA's questions, as LLaVA's conversations have them, into a JSON-lines file."""

import argparse

from llava.eval.command import AnswerCommand, add_single_pred_prompt
from llava.eval.tasks import science_qa
from llava.eval.tasks.shared import OPTION_LETTER


def load(args: argparse.Namespace) -> list[dict]:
    return science_qa.read_questions(args.question_file, OPTION_LETTER if args.single_pred_prompt else "")


COMMAND = AnswerCommand(
    module="llava.eval.model_vqa_science",
    description=__doc__,
    questions='JSON list {"id", "conversations", "image"?}, e.g. llava_test_CQM-A.json',
    load=load,
    own_flags=add_single_pred_prompt,
)

if __name__ == "__main__":
    raise SystemExit(COMMAND.main())
