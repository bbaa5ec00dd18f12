"""Answer DocVQA's questions with a model, into JSON lines {"questionId", "answer"}.

Killed anywhere, the same command goes on where it stopped; when nothing is left to do no model is loaded.
"""

from llava.eval.command import AnswerCommand
from llava.eval.tasks import docvqa

COMMAND = AnswerCommand(
    module="llava.eval.eval_docvqa",
    description=__doc__,
    questions="val_v1.0_withQT.json or test_v1.0.json",
    load=lambda args: docvqa.read_questions(args.question_file),
    max_new_tokens=128,
    published_row=lambda row: {"questionId": row["question_id"], "answer": row["text"]},
)

if __name__ == "__main__":
    raise SystemExit(COMMAND.main())
