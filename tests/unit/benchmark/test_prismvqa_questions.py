"""PrismVQA's questions: answers are right and equally frequent, and cannot be guessed from the question."""

from collections import Counter, defaultdict
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prismvqa_reference import answer

from llava.benchmark.prismvqa.question_only import score_blind, table
from llava.benchmark.prismvqa.questions import FAMILIES, FORMS, Question, ask_all
from llava.benchmark.prismvqa.scene import generator, sample_scene

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_TEST = 2400, 800


def asked_of(seed: int, split: str, index: int) -> list[Question]:
    return ask_all(sample_scene(seed, split, index), generator(seed, split, index, 1))


@pytest.fixture(scope="module")
def train() -> list[Question]:
    return [question for i in range(NUM_TRAIN) for question in asked_of(0, "train", i)]


@pytest.fixture(scope="module")
def test() -> list[Question]:
    return [question for i in range(NUM_TEST) for question in asked_of(0, "test", i)]


@given(st.integers(0, 2**32), st.sampled_from(["train", "test"]), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_each_answer_is_what_the_scene_says(seed, split, index):
    items = asdict(sample_scene(seed, split, index))["items"]
    for question in asked_of(seed, split, index):
        assert question.answer == answer(question.text, items), question


def test_every_form_is_reached_and_answers_as_it_says(train):
    found = defaultdict(set)
    for question in train:
        assert question.family == FORMS[question.form].family
        found[question.form].add(question.answer)
    assert found.keys() == FORMS.keys()
    for form, answers in found.items():
        assert answers == set(FORMS[form].answers or answers)


def test_a_scene_has_one_question_a_family_at_most():
    for i in range(200):
        families = [question.family for question in asked_of(1, "train", i)]
        assert len(families) == len(set(families))
        assert {"count", "exist"} <= set(families) <= set(FAMILIES)


def test_most_scenes_have_all_families(train):
    counts = Counter(question.family for question in train)
    assert min(counts.values()) > 0.7 * NUM_TRAIN


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.answers])
def test_answers_of_a_form_are_even(form, train, test):
    counts = Counter(question.answer for question in (*train, *test) if question.form == form)
    number, kinds = sum(counts.values()), len(FORMS[form].answers)
    expected = number / kinds
    assert expected > 5
    off = sum((counts[answer] - expected) ** 2 / expected for answer in FORMS[form].answers)
    # chi squared with kinds - 1 degrees of freedom: the mean plus five standard deviations
    assert off < kinds - 1 + 5 * np.sqrt(2 * (kinds - 1))


def test_each_of_two_named_items_is_the_answer_equally_often(train):
    larger = [question for question in train if question.form == "larger"]
    first = sum(f"larger, the {question.answer}" in question.text for question in larger)
    assert abs(first / len(larger) - 0.5) < 4 * 0.5 / np.sqrt(len(larger))


def test_yes_and_no_are_as_frequent_for_every_color_and_shape(train, test):
    asked = [question for question in (*train, *test) if question.family == "exist"]
    for position in (3, 4):
        counts = defaultdict(Counter)
        for question in asked:
            counts[question.text.rstrip("?").split()[position]][question.answer] += 1
        assert len(counts) == 8
        for both in counts.values():
            assert abs(both["yes"] / both.total() - 0.5) < 4 * 0.5 / np.sqrt(both.total())


def test_question_only_stays_near_chance_in_every_family(train, test):
    scores = score_blind(train, test)
    assert tuple(scores) == FAMILIES
    for family, score in scores.items():
        margin = 4 * np.sqrt(score.chance * (1 - score.chance) / score.total)
        assert abs(score.frequent - score.chance) < margin, family
        assert abs(score.bayes - score.chance) < margin, family


def test_question_only_finds_what_words_tell():
    def question(color: str, shape: str) -> Question:
        return Question("attribute", f"What color is the {shape}?", color, "color")

    leaky = [question("red", "circle"), question("blue", "star")] * 20
    score = score_blind(leaky, leaky)["attribute"]
    assert (score.frequent, score.bayes, score.chance) == (1, 1, 0.125)
    unseen = [Question("attribute", "What color is the small circle?", "red", "color")]
    assert score_blind(leaky, unseen)["attribute"].bayes == 1
    assert "| attribute | 40 | 12.5 | 100.0 | 100.0 |" in table(score_blind(leaky, leaky))


def test_a_question_never_names_what_it_asks_for(train):
    for question in train:
        if question.form not in (
            "larger",
            "side",
            "fineness",
        ):  # these questions name all their possible answers
            assert question.answer not in question.text.replace(",", "").rstrip("?").split(), question
