"""A GPU loads a model in its checkpoint's dtype, and a compiled chat gives the answers of a plain one."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from PIL import Image

from llava.decoding import Decoding
from llava.loading import has_bf16
from llava.model.builder import load_pretrained_model
from llava.serve.chat import open_chat


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("loading") / "model")


@pytest.mark.parametrize("saved", ["float32", "bfloat16", "float16"])
def test_a_gpu_computes_in_the_checkpoints_dtype_and_in_half_precision_always(cuda, folder, saved):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": saved}))
    model = load_pretrained_model(str(folder), device=str(cuda))[1]
    expected = torch.bfloat16 if saved != "float16" and has_bf16(cuda) else torch.float16
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_compiled_chat_says_the_same_in_each_answers_thread(cuda, folder):
    """Each answer is made in its own thread, and each thread has its own CUDA graphs."""
    said = []
    for compiled in (False, True):
        chat = open_chat(str(folder), device=str(cuda), torch_dtype=torch.float32, compile_vision=compiled)
        for colour in ("red", "blue"):
            chat.reset()
            chat.add_image(Image.new("RGB", (60, 40), colour))
            for text in ("what is it?", "and now?"):
                said.append("".join(chat.ask(text, Decoding(max_new_tokens=8))))
    assert said[:4] == said[4:]
    assert len(set(said)) > 2
