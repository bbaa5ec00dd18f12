"""vLLM with exported folders gives our answers, and each request can choose its number of visual tokens."""

import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_vllm.sh")

import exports
from openai_server import LENGTH, QUESTION, Server
from ports import free_port
from vllm import LLM, SamplingParams

from llava.export.folder import export

MODELS = {  # maps a name to the arguments of tiny.build
    "visualprism": {"mm_projector_type": "visualprism"},
    "visualprism_v2": {"mm_projector_type": "visualprism_v2"},
    "tokenpacker": {"mm_projector_type": "tokenpacker"},
    "mlp2x_gelu": {"mm_projector_type": "mlp2x_gelu"},
    "slice": {"mm_projector_type": "visualprism", "image_aspect_ratio": "slice"},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory, bpe_tokenizer):
    """The model's name, its folder from training, and its exported folder."""
    folder = tmp_path_factory.mktemp(request.param)
    build = MODELS[request.param]
    ours = exports.save_whole(
        folder / "ours", copy.deepcopy(bpe_tokenizer), decoder=exports.FOR_VLLM, **build
    )
    export(str(ours), folder / "theirs")
    return request.param, ours, folder / "theirs"


def budgets_of(name: str) -> list[int | None]:
    """The scale factors that requests choose, one after another."""
    return [None] if name == "mlp2x_gelu" else [None, 1, 4]


def implementation_of(name: str) -> str:
    """The value of --model-impl for the model."""
    # vLLM's own class for mlp2x_gelu needs torchvision, which has no build for torch 2.13 on the CPU
    return "transformers" if name == "mlp2x_gelu" else "auto"


def test_one_batch_of_several_budgets_has_our_answers(model):
    name, ours, theirs = model
    images = exports.pictures(6)
    budgets = (budgets_of(name) * len(images))[: len(images)]
    engine = LLM(
        str(theirs),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        seed=0,
        model_impl=implementation_of(name),
    )
    prompt = exports.Theirs(theirs).processor.apply_chat_template(
        exports.messages([(QUESTION, 1, None)], iter(images)), add_generation_prompt=True
    )
    requests = [
        {
            "prompt": prompt,
            "multi_modal_data": {"image": image},
            "mm_processor_kwargs": {} if budget is None else {"scale_factor": budget},
        }
        for image, budget in zip(images, budgets, strict=True)
    ]
    greedy = SamplingParams(temperature=0, max_tokens=LENGTH, min_tokens=LENGTH)
    answers = [list(output.outputs[0].token_ids) for output in engine.generate(requests, greedy)]
    del engine
    assert answers == exports.Ours(ours).answers(QUESTION, images, budgets, LENGTH)


def test_the_server_answers_32_clients_at_once_and_refuses_other_scales(model, tmp_path):
    name, ours, theirs = model
    images = exports.pictures(32)
    budgets = (budgets_of(name) * len(images))[: len(images)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(theirs)]
    command += ["--host", "127.0.0.1", "--port", str(port := free_port()), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "512", "--served-model-name", "tiny"]
    command += ["--trust-request-mm-kwargs", "--model-impl", implementation_of(name)]
    with Server(command, port, tmp_path / "log") as server:
        for wrong in (7, "two", True) if len(set(budgets)) > 1 else ():  # if there is a choice
            status, body = server.ask(images[0], wrong)
            assert status == 400, (wrong, body)
            assert "scale_factor" in json.dumps(body)
        with ThreadPoolExecutor(len(images)) as clients:
            found = list(clients.map(server.ask, images, budgets))
        assert [status for status, _ in found] == [200] * len(images), server.log.read_text()
        assert server.is_up()
    answers = [body["choices"][0]["token_ids"] for _, body in found]
    assert answers == exports.Ours(ours).answers(QUESTION, images, budgets, LENGTH)
