"""How long each question's prompt is, which decides who shares a batch: kept in a file beside the answers.

Batches depend on the lengths of all prompts. A resumed run reads those of the answered questions from the
file, so that it makes the same batches and tokenises only what is left.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.records import images_of, key_of
from llava.progress import progress_bar
from llava.wholefile import write_text

PROMPTS_AT_ONCE = 1024  # tokenised in one call


class Length(NamedTuple):
    """Of one prompt: its question's place in the list, its ids, and the positions that the model sees."""

    place: int
    num_ids: int
    length: int


def lengths_of(answers: Path) -> Path:
    """Where the lengths of an answers file's prompts are kept."""
    return answers.with_name(f"{answers.name}.lengths")


class LengthFile:
    """The lengths of a list of questions under one set of settings.

    Args:
        answers: path of the answers file that this one stands beside.
        settings: JSON values; lengths of other questions or settings are not read.
    """

    def __init__(self, answers: Path, questions: list[dict], settings: dict):
        self.path = lengths_of(answers)
        digest = hashlib.sha256(json.dumps(settings).encode())
        for question in questions:
            images = [image for image in images_of(question) if isinstance(image, str)]
            digest.update(json.dumps([*key_of(question), *images]).encode())
        self._of = digest.hexdigest()

    def read(self) -> list[Length]:
        """What `write` was given; nothing if the file is missing, damaged, or of something else."""
        try:
            saved = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return []
        if not isinstance(saved, dict) or saved.get("of") != self._of:
            return []
        return [Length(*numbers) for numbers in saved["lengths"]]

    def write(self, lengths: Iterable[Length]) -> None:
        write_text(self.path, json.dumps({"of": self._of, "lengths": list(lengths)}))


def measure(
    questions: list[dict],
    file: LengthFile,
    kept: set,
    make_prompts: Callable[[list[dict]], list],
    refuse: Callable[[dict, UserError], None],
    processes,
) -> list[Length]:
    """The lengths of all prompts, the longest first: what is too large for the memory fails at once.

    Each process tokenises its part of what is not known: the questions are many where the answers are short.

    Args:
        file: has the lengths that an earlier run found, and is written where there are new ones.
        kept: keys of the answered questions; those whose length is known are not tokenised.
        make_prompts: a PromptMaker.
        refuse: called with a question that cannot be asked and the reason; may raise.
        processes: accelerate's PartialState.
    """
    from accelerate.utils import gather_object

    before = file.read()
    known = [one for one in before if key_of(questions[one.place]) in kept]
    unknown = sorted(set(range(len(questions))) - {one.place for one in known})
    mine = unknown[processes.process_index :: processes.num_processes]
    made = []
    with progress_bar("prompts", len(mine), "q") as bar:
        for start in range(0, len(mine), PROMPTS_AT_ONCE):
            indices = mine[start : start + PROMPTS_AT_ONCE]
            prompts = make_prompts([questions[i] for i in indices])
            for i, prompt in zip(indices, prompts, strict=True):
                if isinstance(prompt, UserError):
                    refuse(questions[i], prompt)
                else:
                    made.append(Length(i, len(prompt.input_ids), prompt.length))
            bar.update(len(indices))
    made = [Length(*one) for one in gather_object(made)]
    lengths = sorted([*known, *made], key=lambda one: (-one.length, one.place))
    if lengths != before and processes.is_main_process:
        file.write(lengths)
    return lengths
