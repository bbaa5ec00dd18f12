"""MMMU: college questions in thirty subjects, multiple choice or open.

Source: Yue et al., "MMMU: a massive multi-discipline multimodal understanding and reasoning benchmark for
expert AGI", 2024, and its evaluation tool, whose oddities are kept.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.table import Table, mean_table

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}

MARKS = (",", ".", "!", "?", ";", ":", "'")
KEY_PHRASES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 3e8
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 42, 3.14
)


class MMMUAnswer(NamedTuple):
    subject: str  # a key of DISCIPLINE_OF
    correct: bool
    parsed: bool = True  # False: no option could be read from the response, and `guess_option` chose


def parse_multiple_choice(response: str, options: dict[str, str]) -> str | None:
    """Return the option that a response names; if there are several, the one named last.

    It looks in turn for "(B)", for "B" between spaces, and, in a response of over five words, for the
    option's text.

    Args:
        options: maps letters to texts.
    Returns:
        A letter, or None if no option is found.
    """
    for mark in MARKS:
        response = response.strip(mark)
    response = f" {response} "
    lowered = response.lower()
    found = {letter: response.rfind(f"({letter})") for letter in options}
    if max(found.values(), default=-1) < 0:
        found = {letter: response.rfind(f" {letter} ") for letter in options}
    if max(found.values(), default=-1) < 0 and len(response.split()) > 5:
        found = {letter: lowered.rfind(text.lower()) for letter, text in options.items()}
    letter = max(found, key=found.__getitem__, default=None)
    return letter if letter is not None and found[letter] >= 0 else None


def guess_option(options: Sequence[str], question_id: str, seed: int = 42) -> str:
    """Return a random letter for a response that names none, as the official tool does.

    It depends only on the question and the seed, not on how many were guessed before.
    """
    return random.Random(f"{seed} {question_id}").choice(options)


def open_answer_correct(response: str, gold: str | Sequence[str]) -> bool:
    """Return whether the key part of a response contains a gold text, or a number equal to a gold number.

    The key part of a line is the shortest remainder after a phrase like "therefore"; if no line has one, it
    is the whole response. Numbers are rounded to two decimals. A one-character text must be next to a space.

    Args:
        gold: an answer, or several alternatives.
    Raises:
        UserError: if there is no gold answer, or an empty one, which every response would contain.
    """
    golds = [gold] if isinstance(gold, str) else list(gold)
    if not golds or not all(answer.strip() for answer in golds):
        raise UserError(f"open_answer_correct: expected at least one answer, and no empty one, got {gold!r}.")
    accepted = [form for answer in golds for form in _forms(answer)]
    texts = [form for form in accepted if isinstance(form, str)]
    parts = _key_parts(response)
    numbers = [number for part in parts for pattern in NUMBERS for number in re.findall(pattern, part)]
    said = [form for part in parts + numbers for form in _forms(part)]
    return any(
        any(text in form for text in texts) if isinstance(form, str) else form in accepted for form in said
    )


def mmmu_table(answers: Iterable[MMMUAnswer]) -> Table:
    """Return the accuracy, with equal weight for all questions, and how often no option could be read.

    Returns:
        {"overall" | discipline | subject: {"accuracy": Score, "unparsed": Score}}, fractions in 0..1.
    Raises:
        UserError: if there are no answers, or for an unknown subject.
    """
    rows = [(row, _labels(row.subject)) for row in answers]
    order = [name for discipline, subjects in DISCIPLINES.items() for name in (discipline, *subjects)]
    accuracy = mean_table("accuracy", ((row.correct, labels) for row, labels in rows), order)
    unparsed = mean_table("unparsed", ((not row.parsed, labels) for row, labels in rows), order)
    return {label: columns | unparsed[label] for label, columns in accuracy.items()}


def _labels(subject: str) -> list[str]:
    if subject not in DISCIPLINE_OF:
        raise UserError(f"MMMU: unknown subject {subject!r}; expected one of {', '.join(DISCIPLINE_OF)}.")
    return [DISCIPLINE_OF[subject], subject]


def _key_parts(response: str) -> list[str]:
    """Return the end of each line after its key phrase, or the whole response if there is none."""
    response = response.strip().strip(".").lower()
    *lines, last = response.split("\n")
    phrases = [(line, KEY_PHRASES) for line in lines] + [(last, (*KEY_PHRASES, "="))]
    parts = []
    for line, keys in phrases:
        shortest = ""
        for key in keys:
            if key in line:
                end = line.split(key)[-1].strip()
                if not shortest or len(end) < len(shortest):
                    shortest = end
        if shortest and shortest not in MARKS:
            parts.append(shortest)
    return parts or [response]


def _forms(text: str) -> list[str | float]:
    """Return a number at two decimals or a lower-case text; one character gets a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
