"""What can be guessed without a picture: two classifiers that read only the question, beside chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava.benchmark.prismvqa.questions import FAMILIES, FORMS, Question


@dataclass(frozen=True)
class Blind:
    """Accuracies on one family's test questions, as fractions; `chance` is the mean over the questions."""

    total: int
    chance: float
    frequent: float
    bayes: float


def score_blind(train: Sequence[Question], test: Sequence[Question]) -> dict[str, Blind]:
    """Each family's chance, beside the accuracies of two guessers that learn from the training questions.

    `frequent` gives a question's most frequent answer in training, or for an unseen text that of its form.
    `bayes` is a naive Bayes classifier over the words of the family's questions, which also classifies
    unseen texts.
    """
    scores = {}
    for family in FAMILIES:
        known, asked = ([q for q in questions if q.family == family] for questions in (train, test))
        if not known or not asked:
            continue
        scores[family] = Blind(
            len(asked),
            float(np.mean([FORMS[question.form].chance for question in asked])),
            _accuracy(asked, _most_frequent(known, asked)),
            _accuracy(asked, _naive_bayes(known, asked)),
        )
    return scores


def _accuracy(questions: Sequence[Question], guesses: Sequence[str]) -> float:
    hits = [question.answer == guess for question, guess in zip(questions, guesses, strict=True)]
    return float(np.mean(hits))


def _most_frequent(known: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    by_text, by_form = defaultdict(Counter), defaultdict(Counter)
    for question in known:
        by_text[question.text][question.answer] += 1
        by_form[question.form][question.answer] += 1
    everything = sum(by_form.values(), Counter())
    return [
        (by_text.get(question.text) or by_form.get(question.form) or everything).most_common(1)[0][0]
        for question in asked
    ]


def _words(text: str) -> list[str]:
    return text.lower().replace("?", " ?").replace(",", " ").replace(":", " ").split()


def _naive_bayes(known: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """Multinomial naive Bayes, smoothed by 1; words that do not occur in training are ignored."""
    answers = sorted({question.answer for question in known})
    vocabulary = {word: i for i, word in enumerate(sorted({w for q in known for w in _words(q.text)}))}
    row_of = {answer: i for i, answer in enumerate(answers)}
    prior, counts = np.zeros(len(answers)), np.ones((len(answers), len(vocabulary)))
    for question in known:
        row = row_of[question.answer]
        prior[row] += 1
        for word in _words(question.text):
            counts[row, vocabulary[word]] += 1
    likelihood = np.log(counts / counts.sum(axis=1, keepdims=True))
    guesses = []
    for question in asked:
        seen = [vocabulary[word] for word in _words(question.text) if word in vocabulary]
        guesses.append(answers[int(np.argmax(np.log(prior) + likelihood[:, seen].sum(axis=1)))])
    return guesses


def table(scores: dict[str, Blind]) -> str:
    """The scores as a Markdown table in percent, with the mean over families at the end."""
    lines = [
        "| family | questions | chance | most frequent answer | naive Bayes |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for family, score in scores.items():
        lines.append(_line(family, f"{score.total:,}", score.chance, score.frequent, score.bayes))
    columns = np.array([[score.chance, score.frequent, score.bayes] for score in scores.values()])
    total = sum(score.total for score in scores.values())
    return "\n".join([*lines, _line("mean", f"{total:,}", *columns.mean(axis=0))])


def _line(name: str, total: str, *shares: float) -> str:
    return f"| {name} | {total} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |"
