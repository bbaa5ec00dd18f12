"""Answer a question file with a model, in batches, into a JSON-lines file.

Killed anywhere, the same command goes on where it stopped; when nothing is left to do no model is loaded.
"""

from llava.eval.command import AnswerCommand
from llava.eval.records import load_questions

COMMAND = AnswerCommand(
    module="llava.eval.model_vqa_loader",
    description=__doc__,
    questions='JSON lines {"question_id", "image", "text"}',
    load=lambda args: load_questions(args.question_file),
    max_new_tokens=128,
)

if __name__ == "__main__":
    raise SystemExit(COMMAND.main())
