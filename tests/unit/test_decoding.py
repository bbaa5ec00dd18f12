"""How an answer is chosen: compiled decoding gives the answer of plain decoding, in one graph."""

import pytest
import tiny
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.decoding import Decoding


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_graph_over_a_fixed_cache_gives_the_same_answers(tmp_path):
    """Rows of different length with one image each. There is one graph, which also runs the next prompt."""
    model = tiny.build(tmp_path)
    ids = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6, 7, 8], [0, 0, 9, IMAGE_TOKEN_INDEX, 11]])
    mask = ids != 0
    plain = Decoding(max_new_tokens=6).kwargs()
    compiled = Decoding(max_new_tokens=6, compiled=True).kwargs()
    config = compiled["compile_config"]
    # only the compiler's front end, which could fail to trace code; it takes seconds
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


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top_k": -2}, "--top_k.*1.*-2"),
        ({"min_p": -0.1}, "--min_p.*0 to 1"),
        ({"min_p": 1.1}, "--min_p.*0 to 1"),
        ({"min_p": float("nan")}, "--min_p.*0 to 1"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty.*0"),
        ({"repetition_penalty": -1.0}, "--repetition_penalty.*0"),
        ({"repetition_penalty": float("inf")}, "--repetition_penalty.*0"),
        ({"repetition_penalty": float("nan")}, "--repetition_penalty.*0"),
    ],
)
def test_settings_out_of_their_range_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Decoding(**fields)


@torch.inference_mode()
@pytest.mark.parametrize("fields", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}, {}])
def test_sampling_from_the_likeliest_token_alone_is_greedy(tmp_path, fields):
    """Without limits, tokens are drawn from the whole vocabulary, whatever the model folder sets."""
    model = tiny.build(tmp_path)
    model.generation_config.update(top_k=1, min_p=1.0, repetition_penalty=9.0, do_sample=True)
    ids = torch.tensor([[5, 6, 7]])
    call = {"pad_token_id": 0, "eos_token_id": None}
    greedy = model.generate(ids, **call, **Decoding(max_new_tokens=12).kwargs())
    sampled = model.generate(ids, **call, **Decoding(2.0, max_new_tokens=12, **fields).kwargs())
    assert torch.equal(greedy, sampled) == bool(fields)
    model.generation_config.update(top_k=50, min_p=None, repetition_penalty=1.0, do_sample=False)
    assert torch.equal(greedy, model.generate(ids, max_new_tokens=12, **call))


def test_plain_decoding_asks_for_no_compiler():
    assert "compile_config" not in Decoding().kwargs()
    kwargs = Decoding(compiled=True).kwargs()
    assert kwargs["cache_implementation"] == "static"
    assert kwargs["compile_config"]._compile_all_devices  # otherwise transformers does not compile on a CPU


def test_compiled_beam_search_is_refused():
    with pytest.raises(ValueError, match="--num_beams 1, got 3"):
        Decoding(num_beams=3, compiled=True)
