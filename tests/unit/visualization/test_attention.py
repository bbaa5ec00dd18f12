"""Captured attention equals what transformers reports, and capturing leaves no trace."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from llava.visualization.attention import capture_attention, resolve_layers

ROWS, COLUMNS = torch.tensor([6, 8]), torch.tensor([1, 3, 4])
IDS = torch.arange(10)[None]


def tiny(config_class=LlamaConfig):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("head", [None, 2])
def test_captured_weights_are_those_that_transformers_reports(config_class, head):
    model = tiny(config_class)
    with torch.no_grad(), capture_attention(model, [0, 2], ROWS, COLUMNS, head) as captured:
        model.get_decoder()(IDS)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        full = model(IDS, output_attentions=True).attentions
    assert sorted(captured) == [0, 2]
    for layer, weights in captured.items():
        whole = full[layer][0].mean(dim=0) if head is None else full[layer][0, head]
        torch.testing.assert_close(weights, whole[ROWS][:, COLUMNS])


def traces(model):
    return model.config._attn_implementation, [len(m._forward_hooks) for m in model.modules()]


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was_even_by_an_error(fail):
    model = tiny()
    before, logits = traces(model), model(IDS).logits
    try:
        with capture_attention(model, [1], ROWS, COLUMNS):
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


@pytest.mark.parametrize("head", [4, -1])
def test_a_head_outside_the_model_is_refused_with_the_range(head):
    with (
        pytest.raises(ValueError, match="has 4 heads; choose from 0 to 3"),
        capture_attention(tiny(), [0], ROWS, COLUMNS, head),
    ):
        pass
