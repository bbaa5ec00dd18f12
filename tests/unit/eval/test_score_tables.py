"""Benchmark scores from the verdicts on answers, compared with sums computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.metrics import (
    CircularAnswer,
    GQAAnswer,
    MMEAnswer,
    MMMUAnswer,
    OCRBenchAnswer,
    PopeAnswer,
    ScienceQAAnswer,
    SeedAnswer,
    bootstrap_interval,
    circular_table,
    gqa_table,
    mean_score,
    mean_table,
    mme_table,
    mmmu_table,
    ocrbench_table,
    pope_table,
    science_qa_table,
    seed_table,
)
from llava.eval.metrics.mmmu import DISCIPLINE_OF

ONE_ROW = {
    gqa_table: GQAAnswer(True, "query"),
    circular_table: CircularAnswer(1, True, True),
    mmmu_table: MMMUAnswer("Art", True),
    ocrbench_table: OCRBenchAnswer("Doc-oriented VQA", 1),
    pope_table: PopeAnswer("random", "yes", "yes"),
    science_qa_table: ScienceQAAnswer(True, "natural science", "grade1", True, True),
    seed_table: SeedAnswer(True, "Scene Understanding", "image"),
}


def values(table: dict, column: str) -> dict[str, float]:
    return {row: round(scores[column].value, 6) for row, scores in table.items() if column in scores}


def totals(table: dict) -> dict[str, int]:
    return {row: next(iter(scores.values())).total for row, scores in table.items()}


# intervals


def test_bootstrap_interval_of_a_coin_is_the_binomial_quantile():
    # 2.5% and 97.5% quantiles of Binomial(100, 1/2) are 40 and 60
    low, high = bootstrap_interval([0, 1] * 50)
    assert low == pytest.approx(0.40, abs=0.011)
    assert high == pytest.approx(0.60, abs=0.011)


def test_bootstrap_interval_agrees_with_drawing_the_questions_one_by_one():
    scores = np.array([0, 0.3, 0.3, 0.6, 0.9, 1, 1, 1, 0.25, 0.75] * 5)
    drawn = np.random.default_rng(7).choice(scores, size=(4000, len(scores))).mean(axis=1)
    assert bootstrap_interval(scores) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.015)


def test_bootstrap_interval_narrows_with_the_root_of_the_questions():
    def width(n):
        low, high = bootstrap_interval([0, 1] * n)
        return high - low

    assert width(50) / width(5000) == pytest.approx(10, rel=0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.randoms())
def test_mean_score_is_bounded_and_blind_to_the_order_of_questions(scores, random):
    score = mean_score(scores)
    assert -1e-9 <= min(scores) - 1e-9 <= score.low <= score.high <= max(scores) + 1e-9
    assert min(scores) - 1e-9 <= score.value <= max(scores) + 1e-9
    assert mean_score(random.sample(scores, len(scores))) == score


def test_bootstrap_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


# tables


def test_mean_table_counts_an_item_in_each_of_its_parts():
    table = mean_table("anls", [(1.0, ["form", "table"]), (0.5, ["form"]), (0.0, [])], order=["table"])
    assert values(table, "anls") == {"overall": 0.5, "table": 1.0, "form": 0.75}
    assert list(table) == ["overall", "table", "form"]
    assert totals(table) == {"overall": 3, "table": 1, "form": 2}


def test_mean_table_keeps_the_name_overall_for_itself():
    with pytest.raises(ValueError, match="overall"):
        mean_table("accuracy", [(1.0, ["overall"])])


@pytest.mark.parametrize("table", [*ONE_ROW, mme_table])
def test_no_answers_are_no_score(table):
    with pytest.raises(ValueError, match="none|no answers"):
        table([])


@pytest.mark.parametrize(("table", "row"), ONE_ROW.items())
def test_one_answer_is_enough_for_a_table(table, row):
    for columns in table(iter([row])).values():
        assert all(score.low <= score.value <= score.high for score in columns.values())


# POPE


def test_pope_table_by_hand():
    answers = [
        *[PopeAnswer("random", "yes", "yes")] * 3,
        *[PopeAnswer("random", "yes", "no")] * 1,
        *[PopeAnswer("random", "no", "yes")] * 2,
        *[PopeAnswer("random", "no", "no")] * 4,
        *[PopeAnswer("popular", "no", "yes")] * 2,  # the answer is never yes, so precision has no cases
        *[PopeAnswer("popular", "no", "no")] * 2,
    ]
    table = pope_table(answers)
    measures = {row: {name: score.value for name, score in columns.items()} for row, columns in table.items()}
    assert measures["random"] == pytest.approx(
        {"accuracy": 0.7, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 0.4}
    )
    assert measures["popular"] == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    assert measures["mean"] == pytest.approx(
        {"accuracy": 0.6, "precision": 3 / 8, "recall": 3 / 10, "f1": 1 / 3, "yes_ratio": 0.2}
    )
    assert totals(table) == {"popular": 4, "random": 10, "mean": 14}
    assert table["random"]["f1"].low < 2 / 3 < table["random"]["f1"].high


YES_NO = st.sampled_from(["yes", "no"])


@given(
    st.lists(st.builds(PopeAnswer, st.sampled_from("ab"), YES_NO, YES_NO), min_size=1, max_size=12),
    st.randoms(),
)
def test_pope_table_is_bounded_and_blind_to_order(answers, random):
    table = pope_table(answers)
    for columns in table.values():
        for score in columns.values():
            assert 0 <= score.low <= score.high <= 1
            assert 0 <= score.value <= 1
    assert pope_table(random.sample(answers, len(answers))) == table


def test_pope_refuses_what_is_neither_yes_nor_no():
    with pytest.raises(ValueError, match="'maybe'"):
        pope_table([PopeAnswer("random", "maybe", "yes")])


# MME


def mme_answers(task: str, *right: int) -> list[MMEAnswer]:
    """Two answers for each image, of which `right` are correct."""
    return [MMEAnswer(task, f"{i}.jpg", n < count) for i, count in enumerate(right) for n in range(2)]


def test_mme_table_by_hand():
    table = mme_table(
        mme_answers("existence", 2, 2, 1, 0)  # 5 of 8 questions, 2 of 4 images
        + mme_answers("OCR", 1, 1)
        + mme_answers("code_reasoning", 2)
    )
    assert values(table, "accuracy") == {"existence": 0.625, "OCR": 0.5, "code_reasoning": 1}
    assert values(table, "accuracy_plus") == {"existence": 0.5, "OCR": 0, "code_reasoning": 1}
    assert values(table, "score") == {
        "existence": 112.5,
        "OCR": 50,
        "code_reasoning": 200,
        "perception": 162.5,
        "cognition": 200,
    }
    perception = table["perception"]["score"]
    assert perception.low < 162.5 < perception.high
    assert perception.total == 6


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.randoms())
def test_mme_is_bounded_and_blind_to_order(right, random):
    answers = mme_answers("scene", *right) + mme_answers("color", *right)
    table = mme_table(answers)
    assert 0 <= table["perception"]["score"].low <= table["perception"]["score"].value <= 400
    assert table["perception"]["score"].value == pytest.approx(2 * table["scene"]["score"].value)
    assert mme_table(random.sample(answers, len(answers))) == table


def test_mme_wants_two_answers_an_image():
    with pytest.raises(ValueError, match=r"scene/1\.jpg has 1 answers"):
        mme_table(mme_answers("scene", 1, 1)[:-1])
    with pytest.raises(ValueError, match="has 4 answers"):
        mme_table(mme_answers("scene", 1) * 2)


def test_mme_refuses_an_unknown_task():
    with pytest.raises(ValueError, match="'weather'"):
        mme_table(mme_answers("weather", 1))


# multiple choice and short answers by part


def test_gqa_table_tells_open_from_binary():
    answers = [GQAAnswer(True, "query"), GQAAnswer(False, "query")]
    answers += [GQAAnswer(True, kind) for kind in ("verify", "logical", "choose", "compare")]
    assert values(gqa_table(answers), "accuracy") == {"overall": 0.833333, "open": 0.5, "binary": 1}


def test_science_qa_table_by_hand():
    answers = [
        ScienceQAAnswer(True, "natural science", "grade6", has_text=True, has_image=True),
        ScienceQAAnswer(False, "natural science", "grade7", has_text=False, has_image=True),
        ScienceQAAnswer(True, "social science", "grade12", has_text=True, has_image=False),
        ScienceQAAnswer(False, "language science", "grade1", has_text=False, has_image=False),
    ]
    table = science_qa_table(answers)
    expected = {"overall": 0.5, "NAT": 0.5, "SOC": 1, "LAN": 0, "TXT": 1, "IMG": 0.5, "NO": 0}
    assert values(table, "accuracy") == {**expected, "G1-6": 0.5, "G7-12": 0.5}
    assert list(table) == [*expected, "G1-6", "G7-12"]


@pytest.mark.parametrize(("subject", "grade"), [("physics", "grade1"), ("natural science", "grade13")])
def test_science_qa_refuses_unknown_parts(subject, grade):
    with pytest.raises(ValueError, match="unknown"):
        science_qa_table([ScienceQAAnswer(True, subject, grade, True, True)])


def test_mmmu_table_weighs_questions_alike_and_counts_the_unparsed():
    answers = [MMMUAnswer("Art", True), MMMUAnswer("Art", True), MMMUAnswer("Music", False, parsed=False)]
    answers += [MMMUAnswer("Math", True, parsed=False)]
    table = mmmu_table(answers)
    assert values(table, "accuracy") == {
        "overall": 0.75,
        "Art and Design": 0.666667,
        "Art": 1,
        "Music": 0,
        "Science": 1,
        "Math": 1,
    }
    assert values(table, "unparsed")["overall"] == 0.5
    assert values(table, "unparsed")["Art"] == 0


def test_mmmu_has_thirty_subjects():
    assert len(DISCIPLINE_OF) == 30
    with pytest.raises(ValueError, match="'Cooking'"):
        mmmu_table([MMMUAnswer("Cooking", True)])


def test_seed_table_by_part_and_type():
    answers = [
        SeedAnswer(True, "Scene Understanding", "image"),
        SeedAnswer(False, "Scene Understanding", "image"),
        SeedAnswer(True, "Action Prediction", "video"),
    ]
    assert values(seed_table(answers), "accuracy") == {
        "overall": 0.666667,
        "image": 0.5,
        "video": 1,
        "Action Prediction": 1,
        "Scene Understanding": 0.5,
    }
    with pytest.raises(ValueError, match="audio"):
        seed_table([SeedAnswer(True, "Scene Understanding", "audio")])


def test_circular_evaluation_wants_every_rotation_right():
    answers = [
        *[CircularAnswer(1, right, right, ("logic",)) for right in (True, False, False, False)],
        *[CircularAnswer(2, True, first, ("logic",)) for first in (True, False)],
        *[CircularAnswer(3, not first, first, ("colour",)) for first in (False, True)],
    ]
    table = circular_table(answers)
    assert values(table, "circular") == {"overall": 0.333333, "logic": 0.5, "colour": 0}
    assert values(table, "vanilla") == {"overall": 0.666667, "logic": 1, "colour": 0}
    assert table["overall"]["circular"].total == 3


@pytest.mark.parametrize("firsts", [(False, False), (True, True)])
def test_circular_evaluation_wants_one_first_order_a_question(firsts):
    with pytest.raises(ValueError, match="question 7"):
        circular_table([CircularAnswer(7, True, first) for first in firsts])


def test_circular_evaluation_wants_one_category_a_question():
    with pytest.raises(ValueError, match="question 7"):
        circular_table([CircularAnswer(7, True, True, ("a",)), CircularAnswer(7, True, False, ("b",))])


def test_ocrbench_table_sums_points_by_category():
    answers = [
        *[OCRBenchAnswer("Regular Text Recognition", right) for right in (1, 1, 0)],
        *[OCRBenchAnswer("Digit String Recognition", right) for right in (1, 0)],
        *[OCRBenchAnswer("Key Information Extraction", right) for right in (0, 1, 1, 1)],
    ]
    table = ocrbench_table(answers)
    assert values(table, "points") == {
        "overall": 6,
        "Text Recognition": 3,
        "Regular Text Recognition": 2,
        "Digit String Recognition": 1,
        "Key Information Extraction": 3,
    }
    overall = table["overall"]["points"]
    assert overall.total == 9
    assert 0 < overall.low < 6 < overall.high <= 9
    with pytest.raises(ValueError, match="'Braille'"):
        ocrbench_table([OCRBenchAnswer("Braille", 1)])
