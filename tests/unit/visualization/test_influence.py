"""Rollout and relevance, compared with their formulas, computed matrix by matrix."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from llava.visualization.influence import relevance, rollout

COLUMNS = torch.tensor([1, 2, 3, 6])
ANSWER = torch.tensor([5, 17, 4])
LENGTH = 12  # without the last position


def case(family):
    """A model, and a sequence of embeddings that ends with an answer, as merge_inputs makes it."""
    torch.manual_seed(0)
    layers = {"n_layers" if family == "mpt" else "num_hidden_layers": 3}
    model = tiny.LANGUAGE_MODELS[family](initializer_range=0.3, **layers).eval()
    mask = torch.ones(1, LENGTH + 1, dtype=torch.bool)
    merged = SimpleNamespace(
        inputs_embeds=torch.randn(1, LENGTH + 1, 32),
        attention_mask=mask,
        position_ids=mask.cumsum(dim=1) - 1,
    )
    return model, merged


def whole_attention(model, merged):
    """(logits [T, V], attention [heads, T, T] of each layer with its graph), from transformers."""
    model.set_attn_implementation("eager")
    output = model(inputs_embeds=merged.inputs_embeds[:, :-1].requires_grad_(), output_attentions=True)
    return output.logits[0], output.attentions


def rows_of(matrices, layers):
    rows = [matrices[layer][LENGTH - len(ANSWER) :][:, COLUMNS] for layer in layers]
    return torch.from_numpy(np.stack(rows)).float()


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_rollout_is_the_product_of_half_attention_and_half_identity(family):
    model, merged = case(family)
    result = rollout(model, merged, ANSWER, [0, 2], COLUMNS)
    whole = rollout(model, merged, ANSWER, [2], torch.arange(LENGTH))
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(1, 3))
    product, products = np.eye(LENGTH), []
    for weights in whole_attention(model, merged)[1]:
        heads = weights[0].detach().double().numpy()
        product = (0.5 * heads.mean(axis=0) + 0.5 * np.eye(LENGTH)) @ product
        products.append(product)
    torch.testing.assert_close(result, rows_of(products, [0, 2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_relevance_is_the_sum_of_rectified_gradient_times_attention(family):
    model, merged = case(family)
    model.set_attn_implementation("sdpa") if family != "mpt" else None
    before = model.config._attn_implementation
    result = relevance(model, merged, ANSWER, [0, 2], COLUMNS)
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    logits, attentions = whole_attention(model, merged)
    for i, token in enumerate(ANSWER):
        position = LENGTH - len(ANSWER) + i
        gradients = torch.autograd.grad(logits[position, token], attentions, retain_graph=True)
        matrix, matrices = np.eye(LENGTH), []
        for gradient, weights in zip(gradients, attentions, strict=True):
            heads = (gradient[0] * weights[0]).detach().double().numpy()
            matrix = matrix + np.maximum(heads, 0).mean(axis=0) @ matrix
            matrices.append(matrix)
        expected = torch.from_numpy(np.stack([matrices[layer][position][COLUMNS] for layer in (0, 2)]))
        torch.testing.assert_close(result[:, i], expected.float(), rtol=1e-3, atol=1e-6)
    assert (result > 0).any()


def test_relevance_holds_no_graph_afterwards():
    import gc
    import weakref

    model, merged = case("llama")
    kept = []

    def remember(module, inputs, output):
        kept.append(weakref.ref(output[1]))

    hook = model.model.layers[0].self_attn.register_forward_hook(remember)
    relevance(model, merged, ANSWER, [2], COLUMNS)
    hook.remove()
    gc.collect()
    assert kept
    assert all(reference() is None for reference in kept)
