"""Captured attention equals what transformers reports, and capturing leaves no trace."""

import pytest
import tiny
import torch
from torch import nn

from llava.visualization.attention import capture_attention, over_heads, resolve_layers

ROWS, COLUMNS = torch.tensor([6, 8]), torch.tensor([1, 3, 4])
IDS = torch.arange(10)[None]


def language_model(family="llama", num_layers=3):
    torch.manual_seed(0)
    layers = {"n_layers" if family == "mpt" else "num_hidden_layers": num_layers}
    return tiny.LANGUAGE_MODELS[family](initializer_range=0.5, **layers).eval()


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
@pytest.mark.parametrize("head", [None, 1])
def test_captured_weights_are_those_that_transformers_reports(family, head):
    model = language_model(family)
    reduce = over_heads(model, head)
    with torch.no_grad(), capture_attention(model, [0, 2], ROWS, COLUMNS, reduce) as captured:
        model.get_decoder()(IDS)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        full = model(IDS, output_attentions=True).attentions
    assert sorted(captured) == [0, 2]
    for layer, weights in captured.items():
        whole = full[layer][0].mean(dim=0) if head is None else full[layer][0, head]
        torch.testing.assert_close(weights, whole[ROWS][:, COLUMNS])
    assert (captured[0] - captured[2]).abs().max() > 1e-3


def test_a_decoder_of_unknown_build_is_refused():
    model = language_model()
    model.get_decoder = lambda: nn.Identity()
    with (
        pytest.raises(ValueError, match="where Identity has its attention is unknown"),
        capture_attention(model, [0], ROWS, COLUMNS, over_heads(model, None)),
    ):
        pass


def traces(model):
    return model.config._attn_implementation, [len(m._forward_hooks) for m in model.modules()]


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was_even_by_an_error(fail):
    model = language_model()
    before, logits = traces(model), model(IDS).logits
    try:
        with capture_attention(model, [1], ROWS, COLUMNS, over_heads(model, None)):
            assert traces(model) != before
            if fail:
                raise KeyError
    except KeyError:
        pass
    assert traces(model) == before
    assert torch.equal(model(IDS).logits, logits)


def test_layers_may_count_from_the_end_and_repeat():
    assert resolve_layers([0, -1, 2, -3], 3) == [0, 2]


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_outside_the_model_is_refused_with_the_range(layer):
    with pytest.raises(ValueError, match=rf"layer {layer} is outside the model's 3; choose from 0 to 2"):
        resolve_layers([layer], 3)


@pytest.mark.parametrize("head", [2, -1])
def test_a_head_outside_the_model_is_refused_with_the_range(head):
    with pytest.raises(ValueError, match="has 2 heads; choose from 0 to 1"):
        over_heads(language_model(), head)
