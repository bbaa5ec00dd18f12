"""An epoch has each file as often as its weight demands."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.mixture import Mixture


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    files=st.lists(st.tuples(st.integers(2, 30), st.floats(0.5, 3)), min_size=1, max_size=4),
    epoch=st.integers(0, 5),
)
def test_a_record_comes_up_its_files_weight_rounded_down_or_up(files, epoch):
    sizes, weights = zip(*files, strict=True)
    mixture = Mixture(sizes, weights)
    indices = mixture.indices(epoch).tolist()
    counts, start = Counter(indices), 0
    assert len(indices) == len(mixture)
    for size, weight in files:
        taken = [counts[index] for index in range(start, start + size)]
        assert sum(taken) == round(size * weight)
        assert max(taken) - min(taken) <= 1
        start += size


def test_two_epochs_at_a_half_see_each_record_once():
    mixture = Mixture([10, 7], [0.5, 1], seed=5)
    first, second = (mixture.indices(epoch).tolist() for epoch in (0, 1))
    assert first != second
    assert sorted(index for index in first + second if index < 10) == list(range(10))
    assert first == Mixture([10, 7], [0.5, 1], seed=5).indices(0).tolist()
    assert first != Mixture([10, 7], [0.5, 1], seed=6).indices(0).tolist()


def test_nothing_left_is_refused():
    with pytest.raises(ValueError, match="--data_weights .* empty epoch"):
        Mixture([3], [0.1])
