"""Compiled decoding, on a GPU with CUDA graphs, gives the answers of plain decoding."""

from __future__ import annotations

import pytest
import tiny
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.decoding import Decoding

IDS = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6, 7, 8], [0, 0, 9, IMAGE_TOKEN_INDEX, 11]])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_compiled_answers_are_the_plain_ones(device, tmp_path, dtype):
    """Rows of different length have one image each. The same graph answers a second prompt.

    In bfloat16, close choices may differ, because a cache of fixed size and a compiler round at other places.
    Then the answers must have the same shape, and contain words of the vocabulary.
    """
    model = tiny.build(tmp_path).to(device, dtype)
    plain = Decoding(max_new_tokens=8).kwargs()
    compiled = Decoding(max_new_tokens=8, compiled=True).kwargs()
    if device.type == "cpu":  # only the compiler's front end, which takes seconds
        compiled["compile_config"].backend, compiled["compile_config"].mode = "aot_eager", None
    else:
        assert compiled["compile_config"].mode == "reduce-overhead"  # with CUDA graphs
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        images = torch.randn(2, 3, 56, 56, device=device, dtype=dtype)
        call = {"attention_mask": IDS != 0, "images": images, "pad_token_id": 0, "eos_token_id": None}
        expected = model.generate(IDS, **call, **plain)
        found = model.generate(IDS, **call, **compiled)
        assert found.shape == expected.shape == (2, 8)
        if dtype == torch.float32:
            assert torch.equal(found, expected)
        else:
            assert ((found >= 0) & (found < tiny.VOCABULARY)).all()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
