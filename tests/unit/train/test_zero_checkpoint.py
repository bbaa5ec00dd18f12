"""A strict load accepts that frozen weights are missing, but no others."""

import pytest
from torch import nn

from llava.train.zero_checkpoint import allow_frozen


@pytest.fixture
def model():
    """A frozen layer before one that is trained."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    layers.register_load_state_dict_post_hook(allow_frozen)
    return layers


def test_frozen_weights_may_be_missing(model):
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("0.")}
    model.load_state_dict(state)
    assert len(state) == 2


def test_what_a_quantised_weight_is_saved_with_may_be_there(model):
    model.load_state_dict({**model.state_dict(), "0.weight.absmax": model[0].bias})


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_what_learns_must_fit(model, change):
    state = model.state_dict()
    if change == "missing":
        del state["1.weight"]
    else:
        state["1.weight.absmax"] = state["1.bias"]
    with pytest.raises(RuntimeError, match=f"(?i){change} key.*1.weight"):
        model.load_state_dict(state)
