"""How an answer is chosen: compiled decoding says what plain decoding says, in one graph."""

import pytest
import tiny
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.decoding import Decoding


@torch.inference_mode()
def test_a_compiled_graph_over_a_fixed_cache_gives_the_same_answers(tmp_path):
    """Rows of different length with an image each; the graph is one, and serves the next prompt too."""
    model = tiny.build(tmp_path)
    ids = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6, 7, 8], [0, 0, 9, IMAGE_TOKEN_INDEX, 11]])
    mask = ids != 0
    plain = Decoding(max_new_tokens=6).kwargs()
    compiled = Decoding(max_new_tokens=6, compiled=True).kwargs()
    config = compiled["compile_config"]
    # the compiler's front end alone: it is what could meet code that it cannot trace, and it takes seconds
    config.backend, config.mode, config.fullgraph = "aot_eager", None, True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed in range(2):
        torch.manual_seed(seed)
        images = torch.randn(2, 3, 56, 56)
        call = {"attention_mask": mask, "images": images, "pad_token_id": 0, "eos_token_id": None}
        expected = model.generate(ids, **call, **plain)
        assert torch.equal(model.generate(ids, **call, **compiled), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_plain_decoding_asks_for_no_compiler():
    assert "compile_config" not in Decoding().kwargs()
    kwargs = Decoding(compiled=True).kwargs()
    assert kwargs["cache_implementation"] == "static"
    assert kwargs["compile_config"]._compile_all_devices  # or transformers would not, off a GPU


def test_compiled_beam_search_is_refused():
    with pytest.raises(ValueError, match="--num_beams 1, got 3"):
        Decoding(num_beams=3, compiled=True)
