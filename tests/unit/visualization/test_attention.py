"""The layers, heads and methods that can be chosen."""

import pytest
import tiny

from llava.visualization.attention import check_method, over_heads, resolve_layers


def test_layers_may_count_from_the_end_and_repeat():
    assert resolve_layers([0, -1, 2, -3], 3) == [0, 2]


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_outside_the_model_is_refused_with_the_range(layer):
    with pytest.raises(ValueError, match=rf"layer {layer}.*0 to 2"):
        resolve_layers([layer], 3)


@pytest.mark.parametrize("head", [2, -1])
def test_a_head_outside_the_model_is_refused_with_the_range(head):
    with pytest.raises(ValueError, match="2 heads.*0 to 1"):
        over_heads(tiny.LANGUAGE_MODELS["llama"](), head)


def test_a_method_that_is_not_there_or_takes_no_head_is_refused():
    check_method("attention", 1)
    check_method("rollout", None)
    with pytest.raises(ValueError, match="attention, rollout, relevance.*'saliency'"):
        check_method("saliency", None)
    with pytest.raises(ValueError, match="--head 1.*--method relevance"):
        check_method("relevance", 1)
