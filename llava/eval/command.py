"""The part that is shared by the published commands which answer a file of questions."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava.command import Parser, exit_code
from llava.eval.records import get_chunk, write_jsonl
from llava.eval.session import FLAGS, Answered, Session
from llava.inference import add_flags


@dataclass(frozen=True)
class AnswerCommand:
    """A command that answers a file of questions into an answers file.

    Args:
        module: its name after `python -m`.
        description: for --help.
        questions: what --question-file is, for --help.
        load: reads the question rows that the parsed flags name.
        max_new_tokens: the default of --max_new_tokens.
        own_flags: adds flags that not all of these commands have.
        published_row: turns an answer row into a row of --answers-file, if that file has a format of its
            own; the answer rows are then kept beside it, in FILE.progress.
    """

    module: str
    description: str
    questions: str
    load: Callable[[argparse.Namespace], list[dict]]
    max_new_tokens: int = 1024
    own_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    published_row: Callable[[dict], dict] | None = None

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        parser = Parser(prog=f"python -m {self.module}", description=self.description)
        add = parser.add_argument
        add("--question-file", required=True, help=self.questions)
        add(
            "--answers-file",
            required=True,
            help="JSON lines file to write; if it exists, the run continues it",
        )
        add(
            "--num-chunks", type=int, default=1, help="number of parts of the questions, one for each process"
        )
        add("--chunk-idx", type=int, default=0, help="the part that this process answers, counted from 0")
        self.own_flags(parser)
        shared = ("--image-folder", "--max_new_tokens", *FLAGS)
        add_flags(parser, *shared, max_new_tokens=self.max_new_tokens)
        return parser.parse_args(argv)

    def evaluate(self, args: argparse.Namespace) -> None:
        """Answer all questions of this chunk that have no answer yet; complete the answers file.

        Raises:
            UserError: for a problem that the user can fix; says how. The answers so far stay in the file.
        """
        questions = get_chunk(self.load(args), args.num_chunks, args.chunk_idx)
        session, path = Session(args), Path(args.answers_file)
        kept = path.with_name(f"{path.name}.progress") if self.published_row else path
        answered = session.answer(questions, kept, args.image_folder, args.max_new_tokens)
        if session.processes.is_main_process:
            if self.published_row:
                write_jsonl(path, map(self.published_row, answered.rows))
            print_skipped(answered)
            print(f"answers: {args.answers_file}")

    def main(self, argv: list[str] | None = None) -> int:
        args = self.parse_args(argv)
        return exit_code(lambda: self.evaluate(args))


def print_skipped(answered: Answered) -> None:
    """Print a line for each question that was left out, and their number if there are any."""
    for question_id, reason in answered.skipped:
        print(f"skipped question {question_id}: {reason}")
    if answered.skipped:
        print(f"{len(answered.skipped)} question(s) skipped")


def add_single_pred_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--single-pred-prompt",
        action="store_true",
        help="add LLaVA-1.5's request for the option's letter to each question",
    )
