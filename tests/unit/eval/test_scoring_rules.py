"""How an answer is parsed and scored: recorded verdicts of the official tools, and cases by hand."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.metrics import (
    anls,
    gqa_correct,
    guess_option,
    normalize_vqa_answer,
    ocrbench_correct,
    open_answer_correct,
    parse_mme_answer,
    parse_multiple_choice,
    parse_option_letter,
    parse_yes_no,
    vqa_accuracy,
    vqa_soft_accuracy,
)

OPTIONS = {"A": "a red bus", "B": "a blue house", "C": "two dogs"}
RECORDED = {
    "evalai_normalize": (150, lambda row: normalize_vqa_answer(row["raw"]), "normalized"),
    "textvqa_accuracy": (80, lambda row: vqa_soft_accuracy(row["prediction"], row["answers"]), "accuracy"),
    "pope_parse": (18, lambda row: parse_yes_no(row["text"]), "answer"),
    "mmmu_multi_choice": (120, lambda row: parse_multiple_choice(row["response"], row["options"]), "parsed"),
    "mmmu_open": (120, lambda row: open_answer_correct(row["response"], row["gold"]), "correct"),
    "ocrbench": (
        60,
        lambda row: ocrbench_correct(row["dataset_name"], row["answers"], row["predict"]),
        "result",
    ),
}


def test_every_recorded_rule_is_known(golden):
    assert json.loads((golden / "eval_scoring.json").read_text()).keys() == RECORDED.keys()


@pytest.mark.parametrize("rule", RECORDED)
def test_recorded_verdicts_of_the_official_tools(golden, rule):
    rows = json.loads((golden / "eval_scoring.json").read_text())[rule]
    number, verdict, key = RECORDED[rule]
    assert len(rows) == number
    for row in rows:
        expected = row[key]
        assert verdict(row) == (pytest.approx(expected) if isinstance(expected, float) else expected), row


@pytest.mark.parametrize(
    ("raw", "normalized"),
    [
        ("", ""),
        ("???", ""),
        ("The A an", ""),
        ("Zwei Äpfel", "zwei äpfel"),
        ("答案。", "答案。"),
        (".5 or 5.", ".5 or 5"),
        ("youre", "you're"),
        ("couldntve", "couldntve"),  # two apostrophes are missing, which is not in the table
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("e-mail", "e mail"),
        ("e- mail", "e mail"),
    ],
)
def test_normalize_vqa_answer_in_odd_cases(raw, normalized):
    assert normalize_vqa_answer(raw) == normalized


@given(st.text())
def test_normalized_answers_are_lower_case_words_without_articles(raw):
    normalized = normalize_vqa_answer(raw)
    assert not {"a", "an", "the", "ten"}.intersection(normalized.split(" "))
    assert not set(string.ascii_uppercase).intersection(normalized)


# k of ten people agree; when one of the k is left out, its own vote is missing
@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
@pytest.mark.parametrize("rule", [vqa_soft_accuracy, vqa_accuracy])
def test_soft_accuracy_leaves_each_person_out_in_turn(rule, agree, accuracy):
    answers = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert rule("red", answers) == pytest.approx(accuracy)


@pytest.mark.parametrize("rule", [vqa_soft_accuracy, vqa_accuracy])
@pytest.mark.parametrize("answers", [[], ["red"], ["red"] * 11])
def test_soft_accuracy_refuses_other_than_ten_answers(rule, answers):
    with pytest.raises(ValueError, match=f"got {len(answers)}"):
        rule("red", answers)


def test_an_empty_prediction_matches_empty_answers_alone():
    assert vqa_soft_accuracy("", ["red"] * 10) == 0
    assert vqa_soft_accuracy("the", [""] * 10) == 1


@given(
    st.sampled_from(["red", "the red", "2", "two"]),
    st.lists(st.sampled_from(["red", "Red.", "2", "two"]), min_size=10, max_size=10),
    st.randoms(),
)
def test_soft_accuracy_is_bounded_and_blind_to_the_order_of_people(prediction, answers, random):
    shuffled = random.sample(answers, 10)
    for rule in (vqa_soft_accuracy, vqa_accuracy):
        assert 0 <= rule(prediction, answers) <= 1
        assert rule(prediction, shuffled) == pytest.approx(rule(prediction, answers))


def test_vqa_accuracy_compares_unanimous_answers_as_they_stand():
    assert vqa_accuracy("Two", ["two"] * 10) == 0
    assert vqa_accuracy("Two", ["two"] * 9 + ["3"]) == 1
    assert vqa_soft_accuracy("Two", ["two"] * 10) == 1


def test_vqa_accuracy_joins_digits_at_a_comma():
    answers = ["100,978"] * 9 + ["many"]
    assert vqa_accuracy("100978", answers) == 1
    assert vqa_accuracy("100 978", answers) == 0


@pytest.mark.parametrize(
    ("text", "answer"), [("  no", "no"), ("no\nyes", "yes"), ("不", "yes"), (". no", "yes"), ("A no.", "no")]
)
def test_parse_yes_no_reads_words_between_spaces_of_the_first_sentence(text, answer):
    assert parse_yes_no(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, it is", "yes"),
        ("NO", "no"),
        ("nope", "no"),
        ("a no", "no"),
        ("The answer is no", "other"),
        ("", "other"),
    ],
)
def test_parse_mme_answer_reads_four_characters(text, answer):
    assert parse_mme_answer(text) == answer


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("", None),
        ("a", None),
        ("B", "B"),
        ("B.", "B"),
        ("(A) or B", "A"),  # letters in brackets come first
        ("(C), no, (A)", "A"),
        ("D", None),
        ("two dogs", None),  # too short for the search for an option's text
        ("What I can see there is TWO DOGS", "C"),
        ("It is a blue house, not a red bus", "A"),
    ],
)
def test_parse_multiple_choice_in_odd_cases(response, letter):
    assert parse_multiple_choice(response, OPTIONS) == letter


def test_parse_multiple_choice_of_no_options_finds_none():
    assert parse_multiple_choice("A", {}) is None


@given(st.text(), st.dictionaries(st.sampled_from("ABCDE"), st.text()))
def test_parse_multiple_choice_names_an_option_or_none(response, options):
    assert parse_multiple_choice(response, options) in {*options, None}


def test_guess_option_depends_on_question_and_seed_alone():
    guesses = [guess_option("ABCD", str(i)) for i in range(400)]
    assert guesses == [guess_option("ABCD", str(i)) for i in range(400)]
    assert guesses != [guess_option("ABCD", str(i), seed=1) for i in range(400)]
    assert all(70 < guesses.count(letter) < 130 for letter in "ABCD")


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        ("", "3", False),
        ("3.001", "3", True),  # two decimals
        ("3.01", "3", False),
        ("The sum is 1,234.", "1234", True),
        ("so x = 7\nso y = 8", "7", True),  # the answer may be in any line
        ("x = 7\ny = 8", "7", False),  # "=" is used only in the last line
        ("It is 4 and therefore 5", "4", False),  # the shortest end of the line is used
        ("a", "a", True),
        ("vitamin b it is", "b", True),
        ("cab", "b", False),  # a letter must have a space beside it
        ("Über", "über", True),
        ("two", ["one", "TWO"], True),
        ("three", ["one", "two"], False),
    ],
)
def test_open_answer_correct_in_odd_cases(response, gold, correct):
    assert open_answer_correct(response, gold) is correct


@pytest.mark.parametrize("gold", ["", " ", [], ["3", ""]])
def test_open_answer_correct_refuses_an_empty_gold(gold):
    with pytest.raises(ValueError, match="no empty one"):
        open_answer_correct("3", gold)


@given(st.integers(-(10**6), 10**6))
def test_an_integer_is_found_behind_a_phrase(number):
    assert open_answer_correct(f"We add them, so the answer is {number}.", str(number))
    assert not open_answer_correct(f"We add them, so the answer is {number}.", str(number + 1))


@pytest.mark.parametrize(
    ("dataset", "answers", "prediction", "result"),
    [
        ("svt", "COFFEE", "It says: coffee!", 1),
        ("svt", ["tea", "coffee"], "tea time", 1),
        ("svt", ["two\nlines"], "two lines", 1),
        ("svt", ["two lines"], "twolines", 0),
        ("svt", [], "anything", 0),
        ("svt", ["x"], "", 0),
        ("HME100k", ["x = \\frac { 1 } { 2 }"], "$x=\\frac{1}{2}$", 1),
        ("HME100k", ["X"], "x", 0),
    ],
)
def test_ocrbench_correct_is_containment(dataset, answers, prediction, result):
    assert ocrbench_correct(dataset, answers, prediction) == result


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Hello  World", ["hello world"], 1),
        ("helo world", ["hello world"], 1 - 1 / 11),
        ("abcd", ["abxy"], 0.5),  # a score at the threshold counts
        ("abcde", ["abxyz"], 0),  # 0.4 is below it
        ("abxd", ["zzzz", "abcd", "ab"], 0.75),  # the most similar answer counts
        ("", ["abc"], 0),
        ("", [""], 1),
        ("straße", ["strasse"], 1 - 2 / 7),
    ],
)
def test_anls_of_hand_worked_edits(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


def test_anls_threshold_is_an_argument():
    assert anls("abcde", ["abxyz"], threshold=0.3) == pytest.approx(0.4)
    assert anls("abcd", ["abxy"], threshold=0.6) == 0


@pytest.mark.parametrize("answers", [[], "abc"])
def test_anls_wants_a_list_of_answers(answers):
    with pytest.raises(ValueError, match="list"):
        anls("a", answers)


@given(st.text(), st.lists(st.text(), min_size=1, max_size=5), st.randoms())
def test_anls_is_bounded_blind_to_order_and_full_for_an_answer_itself(prediction, answers, random):
    score = anls(prediction, answers)
    assert score == 0 or 0.5 <= score <= 1
    assert anls(prediction, random.sample(answers, len(answers))) == score
    assert anls(answers[0], answers) == 1


@pytest.mark.parametrize(
    ("prediction", "correct"),
    [("Red.", True), (" red", True), ("the red", False), ("", False), ("red..", True)],
)
def test_gqa_correct_forgives_case_and_periods(prediction, correct):
    assert gqa_correct(prediction, "red") is correct


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        (" B\n", "B"),
        ("B. a dog", "B"),
        ("We see a dog. The answer is B.", "B"),
        ("The answer is A. The answer is B.", None),
        ("The answer is Bob", None),
        ("E", None),
        ("Bird", None),
        ("b", None),
        ("", None),
    ],
)
def test_parse_option_letter(text, letter):
    assert parse_option_letter(text, "ABCD") == letter
