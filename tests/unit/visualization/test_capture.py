"""Captured attention equals transformers' own, needs memory only for rows, and changes nothing."""

import pytest
import tiny
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava.visualization.capture import capture_attention

IDS = torch.arange(10)[None]
# Shared key heads, windows that drop positions, an unusual scaling
FORMS = {
    "llama": ("llama", {}),
    "llama, each head its own key": ("llama", {"num_key_value_heads": 2}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows above": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "mpt": ("mpt", {}),
}


def language_model(form, num_layers=3, **changes):
    torch.manual_seed(0)
    family, own = FORMS[form]
    layers = {"n_layers" if family == "mpt" else "num_hidden_layers": num_layers}
    model = tiny.LANGUAGE_MODELS[family](initializer_range=0.5, **layers, **own, **changes).eval()
    model.generation_config.eos_token_id = None
    return model


def keep_all(weights):
    return weights


def reported(model, ids):
    """The attention float[heads, T, T] of each layer, from transformers."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [weights[0] for weights in model(ids, output_attentions=True).attentions]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_one_pass_are_those_that_transformers_reports(form):
    model = language_model(form)
    with torch.no_grad(), capture_attention(model, [0, 2], keep_all, num_rows=4) as captured:
        model.get_decoder()(IDS)
    whole = reported(model, IDS)
    assert sorted(captured) == [0, 2]
    for layer, (weights,) in captured.items():
        assert weights.shape == (2, 4, 10)
        torch.testing.assert_close(weights, whole[layer][:, -4:])
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4))
    assert (captured[0][0] - captured[2][0]).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_generation_gives_the_same_answer_and_the_row_that_predicted_each_token(form):
    model = language_model(form)
    plain = model.generate(IDS, max_new_tokens=5, do_sample=False)
    with capture_attention(model, [0, 2], keep_all) as captured:
        watched = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(watched, plain)
    whole = reported(model, plain)
    for layer, rows in captured.items():
        assert len(rows) == 5
        for i, row in enumerate(rows):
            length = IDS.shape[1] + i
            assert row.shape == (2, 1, length)
            torch.testing.assert_close(row[:, 0], whole[layer][:, length - 1, :length], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(row.sum(dim=-1), torch.ones(2, 1))


def test_padding_gets_no_attention():
    model = language_model("qwen2")
    mask = torch.ones_like(IDS)
    mask[:, :3] = 0
    with torch.no_grad(), capture_attention(model, [1], keep_all, num_rows=2) as captured:
        model.get_decoder()(IDS, attention_mask=mask)
    row = captured[1][0]
    assert (row[..., :3] == 0).all()
    torch.testing.assert_close(row.sum(dim=-1), torch.ones(2, 2))


def test_half_precision_gives_rows_that_sum_to_one():
    model = language_model("llama").to(torch.bfloat16)
    with capture_attention(model, [0], keep_all) as captured:
        model.generate(IDS, max_new_tokens=2, do_sample=False)
    for row in captured[0]:
        assert row.dtype == torch.float32
        torch.testing.assert_close(row.sum(dim=-1), torch.ones(2, 1))


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("form", [form for form in FORMS if form != "mpt"])
def test_no_tensor_of_all_heads_and_pairs_of_positions_is_made(form):
    model = language_model(form, max_position_embeddings=512)
    ids = torch.arange(300)[None]
    with Largest() as largest, capture_attention(model, [0, 1, 2], keep_all):
        model.generate(ids, max_new_tokens=2, do_sample=False)
    whole = 2 * 300 * 300
    assert largest.elements < whole
    with Largest() as largest:
        reported(model, ids)
    assert largest.elements >= whole


def test_a_decoder_of_unknown_build_is_refused():
    model = language_model("llama")
    model.get_decoder = lambda: nn.Identity()
    with (
        pytest.raises(ValueError, match="Identity.*llava.visualization.capture.NAMES"),
        capture_attention(model, [0], keep_all),
    ):
        pass


def test_several_sequences_at_once_are_refused_and_one_after_another_kept_apart():
    model = language_model("llama")
    with capture_attention(model, [0], keep_all) as captured:
        for ids in (IDS, IDS[:, :4]):
            model.generate(ids, max_new_tokens=2, do_sample=False)
    assert [row.shape[-1] for row in captured[0]] == [10, 11, 4, 5]
    with (
        pytest.raises(ValueError, match="got 2.*num_beams=1"),
        capture_attention(model, [0], keep_all),
    ):
        model.generate(IDS, max_new_tokens=2, num_beams=2)


def traces(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return model.config._attn_implementation, hooks


@pytest.mark.parametrize("before", ["sdpa", "eager"])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("form", ["llama", "mpt"])
def test_the_model_is_left_as_it_was_even_by_an_error(form, before, fail):
    model = language_model(form)
    if form != "mpt":
        model.set_attn_implementation(before)
    before, logits = traces(model), model(IDS).logits
    try:
        with capture_attention(model, [1], keep_all):
            assert traces(model) != before
            if fail:
                raise KeyError
    except KeyError:
        pass
    assert traces(model) == before
    assert torch.equal(model(IDS).logits, logits)
