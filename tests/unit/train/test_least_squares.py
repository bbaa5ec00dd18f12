"""The parts of a warm start: the fit from sums, the words of an answer, unusual tokens, the last map."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.constants import IGNORE_INDEX
from llava.errors import UserError
from llava.train import warm_start
from llava.train.warm_start import Sums, choose_pictures, features_of, unusual

LAST, NUM_FEATURES, WIDTH = 40, 7, 5


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(LAST, NUM_FEATURES, generator=generator) + 3
    y = x @ torch.randn(NUM_FEATURES, WIDTH, generator=generator) + 1
    return x, y + 0.3 * torch.randn(LAST, WIDTH, generator=generator)


def summed(x, y, at_once=LAST):
    sums = Sums.empty(NUM_FEATURES, WIDTH, "cpu")
    for part in zip(x.split(at_once), y.split(at_once), strict=True):
        sums.add(*part)
    return sums


@pytest.mark.parametrize("penalty", [0.0, 0.1, 10.0])
def test_the_fit_from_sums_is_that_of_all_examples_at_once(examples, penalty):
    x, y = (part.double() for part in examples)
    sums = summed(*examples, at_once=9) + Sums.empty(NUM_FEATURES, WIDTH, "cpu")
    weight, bias = sums.ridge(penalty)
    centred, size = x - x.mean(dim=0), (x - x.mean(dim=0)).square().sum(dim=0).mean()
    # ridge regression is least squares with one more row per weight, whose target is zero
    rows = torch.cat([centred, (penalty * size).sqrt() * torch.eye(NUM_FEATURES, dtype=torch.double)])
    targets = torch.cat([y - y.mean(dim=0), torch.zeros(NUM_FEATURES, WIDTH, dtype=torch.double)])
    torch.testing.assert_close(weight.T, torch.linalg.lstsq(rows, targets).solution)
    torch.testing.assert_close(bias, y.mean(dim=0) - weight @ x.mean(dim=0))


def test_the_explained_share_is_that_of_the_residuals(examples):
    x, y = (part.double() for part in examples)
    weight, bias = summed(*examples).ridge(0.1)
    residual = (y - x @ weight.T - bias).square().sum()
    expected = 1 - residual / (y - y.mean(dim=0)).square().sum()
    assert summed(*examples, at_once=11).explained(weight, bias) == pytest.approx(float(expected))
    assert summed(*examples).explained(torch.zeros_like(weight), y.mean(dim=0)) == pytest.approx(0, abs=1e-6)


def test_the_squares_are_those_of_all_predictions(examples):
    x = examples[0].double()
    weight, bias = summed(*examples).ridge(0.1)
    expected = (x @ weight.T + bias).square().sum()
    assert summed(*examples, at_once=11).squares(weight, bias).item() == pytest.approx(expected.item())


def test_without_a_bias_the_fit_goes_through_the_origin(examples):
    x, y = (part.double() for part in examples)
    weight, bias = summed(*examples).ridge(0.0, has_bias=False)
    torch.testing.assert_close(weight.T, torch.linalg.lstsq(x, y).solution)
    assert torch.equal(bias, torch.zeros_like(bias))


def test_features_without_variance_are_no_error(examples):
    x, y = examples
    weight, bias = summed(torch.ones_like(x), y).ridge(1e-4)
    torch.testing.assert_close(weight, torch.zeros_like(weight))
    torch.testing.assert_close(bias, y.double().mean(dim=0))


def test_the_unusual_token_is_the_one_that_differs():
    tokens = torch.ones(9, NUM_FEATURES) + 0.1 * torch.randn(9, NUM_FEATURES)
    tokens[4] += 5
    assert unusual(tokens).argmax() == 4
    assert torch.equal(unusual(torch.ones(9, NUM_FEATURES)), torch.zeros(9))


# ---- Words


class Records(list):
    """Records given as (files, ids of the answer); None stands for a bad record."""

    def encoded(self, index):
        if self[index] is None:
            return None
        files, said = self[index]
        return SimpleNamespace(files=files, labels=[IGNORE_INDEX, *said])


RECORDS = Records(
    [(["a"], [1, 9, 5]), (["b"], [1, 9, 6]), ([], [7]), (["c", "d"], [8]), None, (["e"], [1, 5])]
)


def test_words_weigh_by_how_few_pictures_have_them(monkeypatch):
    monkeypatch.setattr(warm_start, "FEWEST", 1)
    pictures = choose_pictures(RECORDS, 10, seed=0, special_ids={9})
    assert sorted(picture.record for picture in pictures) == [0, 1, 5]  # each of these has one picture
    found = {picture.record: dict(zip(picture.words, picture.weights, strict=True)) for picture in pictures}
    assert all(set(words) <= {5, 6} for words in found.values())  # all answers contain 1, and 9 is not a word
    assert found[1][6] > found[0][5] == found[5][5] > 0


def test_as_many_pictures_are_drawn_as_asked_and_the_same_again(monkeypatch):
    monkeypatch.setattr(warm_start, "FEWEST", 0)
    drawn = [choose_pictures(RECORDS, 2, seed, set()) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert all(len(pictures) <= 2 for pictures in drawn)
    assert len({tuple(picture.record for picture in pictures) for pictures in drawn}) > 1


@pytest.mark.parametrize(
    ("records", "num_found"),
    [(Records([([], [7])]), 0), (Records([(["a"], [1]), (["b"], [1])]), 0), (Records(), 0), (RECORDS, 3)],
)
def test_too_few_records_that_tell_pictures_apart_are_refused(records, num_found):
    with pytest.raises(UserError, match=f"--mm_projector_warm_start 5 .* {num_found} .*--data_path"):
        choose_pictures(records, 5, 0, {9})


# ---- The last map


def seeing(projector: nn.Module, call):
    return SimpleNamespace(get_projector=lambda: projector, encode_images=call)


def test_the_map_that_gives_the_tokens_is_found_behind_a_change_of_shape():
    projector = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.Linear(5, 5))
    model = seeing(projector, lambda views: projector[:3](views.flatten(0, 1)).reshape(2, 9, 5))
    views = torch.randn(2, 9, 4)
    last, features = features_of(model, views)
    assert last is projector[2]
    torch.testing.assert_close(last(features), model.encode_images(views))


def test_a_projector_that_ends_otherwise_is_refused_by_its_class():
    projector = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    with pytest.raises(UserError, match="--mm_projector_warm_start.*Sequential"):
        features_of(seeing(projector, projector), torch.randn(2, 9, 4))
