"""Questions and answers as ids."""

# B scenes, Q questions of all of them, n ids of the longest

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SEPARATOR = "\n"  # between a question and its answer


@dataclass(frozen=True)
class Asked:
    """A question and its answer: ids, of which the first `num_prompt` are the question's."""

    ids: tuple[int, ...]
    num_prompt: int
    family: str


@dataclass(frozen=True)
class TextBatch:
    """All questions of B scenes.

    Attributes:
        ids: long[Q, n], padded on the right, where nothing that counts looks.
        scene: long[Q], which of the B each is about.
        rows, columns: long[k], where the k ids of the answers stand.
        families: Q names.
    """

    ids: Tensor
    scene: Tensor
    rows: Tensor
    columns: Tensor
    families: tuple[str, ...]

    def to(self, device: str) -> "TextBatch":
        moved = (part.to(device) for part in (self.ids, self.scene, self.rows, self.columns))
        return TextBatch(*moved, self.families)


def learn_tokenizer(texts: Iterable[str], vocabulary: int):
    """A byte-level BPE of the training questions, as a tokenizer of transformers.

    Letters of a printed text must stay apart for unseen ones to be spelt, so capitals and digits stand alone.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[A-Z0-9](?![a-z])"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def encode(text: str, answer: str, family: str, tokenizer) -> Asked:
    """With a tokenizer of transformers that has an end token."""
    prompt = tokenizer(text + SEPARATOR, add_special_tokens=False).input_ids
    said = tokenizer(answer, add_special_tokens=False).input_ids
    return Asked((*prompt, *said, tokenizer.eos_token_id), len(prompt), family)


def collate(scenes: Sequence[Sequence[Asked]]) -> TextBatch:
    """A batch of each scene's questions."""
    asked = [question for scene in scenes for question in scene]
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(question.ids) for question in asked], batch_first=True
    )
    # on the host, since a device would have to be waited for
    places = [
        (row, column)
        for row, question in enumerate(asked)
        for column in range(question.num_prompt, len(question.ids))
    ]
    rows, columns = torch.tensor(places).T
    scene = torch.tensor([number for number, questions in enumerate(scenes) for _ in questions])
    return TextBatch(ids, scene, rows, columns, tuple(question.family for question in asked))
