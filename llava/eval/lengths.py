"""The length of each question's prompt, kept in a file beside the answers.

The batches depend on the lengths of all prompts. A resumed run reads the lengths of the answered questions
from the file. So it makes the same batches, and tokenises only the other questions.
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
    """One prompt's place in the list of questions, its number of ids, and its positions in the model."""

    place: int
    num_ids: int
    length: int


def lengths_of(answers: Path) -> Path:
    """Return the path of the file that keeps the prompt lengths for an answers file."""
    return answers.with_name(f"{answers.name}.lengths")


class LengthFile:
    """The file of the prompt lengths of a list of questions under one set of settings.

    Args:
        answers: path of the answers file; this file lies in the same folder.
        settings: JSON values; lengths that were written for other questions or settings are not read.
    """

    def __init__(self, answers: Path, questions: list[dict], settings: dict):
        self.path = lengths_of(answers)
        digest = hashlib.sha256(json.dumps(settings).encode())
        for question in questions:
            images = [image for image in images_of(question) if isinstance(image, str)]
            digest.update(json.dumps([*key_of(question), *images]).encode())
        self._of = digest.hexdigest()

    def read(self) -> list[Length]:
        """Return what `write` was given; [] if there is no intact file for these questions and settings."""
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
    """Return the lengths of all prompts, the longest first, so that one too large for the memory fails soon.

    Each process tokenises its part of the prompts whose length is not known, because benchmarks with short
    answers have many questions.

    Args:
        file: holds the lengths that an earlier run found; it is written if they have changed.
        kept: keys of the answered questions; they are not tokenised if `file` has their lengths.
        make_prompts: a PromptMaker.
        refuse: called with a question that cannot be asked, and with the reason; may raise.
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
