"""Metrics, compared with numbers that were computed in another way."""

import pytest

from llava.eval.metrics import exact_match, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (600, 1000, 0.5693, 0.6299)],
)
def test_wilson_interval_gives_the_textbook_numbers(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_of_no_trials_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "total"), [(3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(correct, total):
    with pytest.raises(ValueError, match=r"0\.\.total"):
        wilson_interval(correct, total)


@pytest.mark.parametrize("prediction", ["red", "Red.", "  RED ", "red .\n"])
def test_exact_match_forgives_case_space_and_period(prediction):
    assert exact_match(prediction, "red")


@pytest.mark.parametrize("prediction", ["", "reddish", "red circle", "r ed", "blue"])
def test_exact_match_forgives_nothing_else(prediction):
    assert not exact_match(prediction, "red")
