"""Encode questions and answers as ids, by a language model's tokenizer or by whole words."""

# B scenes, Q questions of all scenes, n ids of the longest question with its answer, k ids of all answers

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SEPARATOR = "\n"  # between a question and a language model's answer
WORD = re.compile(r"\w+|[^\w\s]")
UNKNOWN = 0  # id of a word or answer that does not occur in training


@dataclass(frozen=True)
class Asked:
    """A question and its answer as ids; the first `num_prompt` ids are the question's."""

    ids: tuple[int, ...]
    num_prompt: int
    family: str


@dataclass(frozen=True)
class TextBatch:
    """All questions of B scenes.

    Attributes:
        ids: long[Q, n], padded on the right, where the padding does not affect any answer.
        scene: long[Q], index of the scene that each question is about.
        slot: long[Q], index of each question among those of its scene.
        rows, columns: long[k], positions in `ids` of the k ids of the answers.
        most: the largest number of questions about one scene.
        families: the families of the Q questions.
    """

    ids: Tensor
    scene: Tensor
    slot: Tensor
    rows: Tensor
    columns: Tensor
    most: int
    families: tuple[str, ...]

    def to(self, device: str) -> "TextBatch":
        parts = (self.ids, self.scene, self.slot, self.rows, self.columns)
        return TextBatch(*(part.to(device) for part in parts), self.most, self.families)  # type: ignore[call-arg]


def collate(scenes: Sequence[Sequence[Asked]]) -> TextBatch:
    """Batch the questions of several scenes; on the host, since building them on a device causes waits."""
    asked = [question for scene in scenes for question in scene]
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(question.ids) for question in asked], batch_first=True
    )
    places = [
        (row, column)
        for row, question in enumerate(asked)
        for column in range(question.num_prompt, len(question.ids))
    ]
    rows, columns = torch.tensor(places).T
    slots = [(number, slot) for number, scene in enumerate(scenes) for slot in range(len(scene))]
    scene, slot = torch.tensor(slots).T
    most = max(map(len, scenes))
    return TextBatch(ids, scene, slot, rows, columns, most, tuple(question.family for question in asked))


class Tokens:
    """Encodes text by a language model's tokenizer; an answer ends with the end-of-sequence token."""

    def __init__(self, folder: Path):
        from llava.model.tokenizer import load_tokenizer

        self.tokenizer = load_tokenizer(folder, padding_side="right")

    def encode(self, text: str, answer: str, family: str) -> Asked:
        prompt = self.tokenizer(text + SEPARATOR, add_special_tokens=False).input_ids
        said = self.tokenizer(answer, add_special_tokens=False).input_ids
        return Asked((*prompt, *said, self.tokenizer.eos_token_id), len(prompt), family)


class Words:
    """Encodes text by ids of the training data: one for each word of a question, one for a whole answer."""

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        """Number the words and answers of (question, answer) pairs; the pairs' order does not matter."""
        pairs = list(pairs)
        words = sorted({word for text, _ in pairs for word in WORD.findall(text.lower())})
        self.words = {word: number for number, word in enumerate(words, start=1)}
        self.answers = {name: number for number, name in enumerate(sorted({a for _, a in pairs}), start=1)}

    def encode(self, text: str, answer: str, family: str) -> Asked:
        prompt = [self.words.get(word, UNKNOWN) for word in WORD.findall(text.lower())]
        return Asked((*prompt, self.answers.get(answer, UNKNOWN)), len(prompt), family)
