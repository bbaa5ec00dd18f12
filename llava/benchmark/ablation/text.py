"""Questions and answers as ids: all questions of a scene stand in one row, and none sees another."""

# B scenes, Q questions of a scene, T ids of a row, M visual tokens

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SEPARATOR = "\n"  # between a question and its answer


@dataclass(frozen=True)
class Scene:
    """One row of text, long[T] each: ids, which question each id belongs to (from 1), its place in that
    question, and whether the id is to be learnt; `families` of its questions."""

    ids: Tensor
    question: Tensor
    place: Tensor
    is_answer: Tensor
    families: tuple[str, ...]


@dataclass(frozen=True)
class TextBatch:
    """Scenes padded to one length, long[B, T]; padding belongs to question 0.

    `rows` and `columns`, long[n], are where the n ids to be learnt stand.
    """

    ids: Tensor
    question: Tensor
    place: Tensor
    rows: Tensor
    columns: Tensor
    families: tuple[tuple[str, ...], ...]

    def to(self, device: str) -> "TextBatch":
        names = ("ids", "question", "place", "rows", "columns")
        return TextBatch(*(getattr(self, name).to(device) for name in names), self.families)


def learn_tokenizer(texts: Iterable[str], vocabulary: int):
    """A byte-level BPE of the training questions, as a tokenizer of transformers.

    Letters of a printed text must stay apart for unseen ones to be spelt, so capitals and digits stand alone.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[A-Z0-9]"), "isolated"),
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


def encode_scene(questions: Sequence, tokenizer) -> Scene:
    """PrismVQA's questions of one scene.

    Args:
        questions: with `text`, `answer` and `family`.
        tokenizer: of transformers, with an end token.
    """
    ids, question, place, is_answer = [], [], [], []
    for number, asked in enumerate(questions, start=1):
        prompt = tokenizer(asked.text + SEPARATOR, add_special_tokens=False).input_ids
        answer = [*tokenizer(asked.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        length = len(prompt) + len(answer)
        ids += prompt + answer
        question += [number] * length
        place += range(length)
        is_answer += [False] * len(prompt) + [True] * len(answer)
    parts = (torch.tensor(part) for part in (ids, question, place, is_answer))
    return Scene(*parts, tuple(asked.family for asked in questions))


def collate(scenes: Sequence[Scene]) -> TextBatch:
    ids, question, place, is_answer = (
        torch.nn.utils.rnn.pad_sequence([getattr(scene, name) for scene in scenes], batch_first=True)
        for name in ("ids", "question", "place", "is_answer")
    )
    # here, on the host: a device would have to be waited for
    rows, columns = is_answer.nonzero(as_tuple=True)
    return TextBatch(ids, question, place, rows, columns, tuple(scene.families for scene in scenes))


def attention_mask(question: Tensor, num_visual: int, dtype: torch.dtype) -> Tensor:
    """Who may look at whom: an id at the image and at what its own question has said so far.

    Args:
        question: long[B, T], 0 where there is padding (which looks at its like, so that no row is empty).
        num_visual: M, ahead of the text.
    Returns:
        dtype[B, 1, M + T, M + T], what is added to scores: 0, or the least number there is.
    """
    owner = torch.nn.functional.pad(question, (num_visual, 0), value=-1)  # -1: the image
    same = (owner[:, :, None] == owner[:, None, :]) | (owner == -1)[:, None, :]
    positions = torch.arange(owner.shape[1], device=owner.device)
    hidden = ~(same & (positions[:, None] >= positions))[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
        hidden, torch.finfo(dtype).min
    )
