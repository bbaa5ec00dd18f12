"""vLLM takes exported folders: it gives our answers, and each request has a budget of its own."""

import base64
import copy
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_vllm.sh")

import exports
import torch
from vllm import LLM, SamplingParams

from llava.export.folder import export
from llava.mm_utils import process_images

MODELS = {  # by name: what tiny.build takes
    "visualprism": {"mm_projector_type": "visualprism"},
    "visualprism_v2": {"mm_projector_type": "visualprism_v2"},
    "tokenpacker": {"mm_projector_type": "tokenpacker"},
    "mlp2x_gelu": {"mm_projector_type": "mlp2x_gelu"},
    "slice": {"mm_projector_type": "visualprism", "image_aspect_ratio": "slice"},
}
DECODER = {"head_dim": 32, "max_position_embeddings": 512}  # the narrowest head of vLLM's attention on CPUs
# vLLM's own class for mlp2x_gelu needs torchvision, which has no build beside torch 2.13 for the CPU
BACKEND = "transformers"
LENGTH = 8  # tokens of an answer
QUESTION = "What is shown in the image?"
PATIENCE = 600  # seconds, for a server that hangs


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory, bpe_tokenizer):
    """A model's name, its folder as training writes it, and its exported folder."""
    folder = tmp_path_factory.mktemp(request.param)
    build = MODELS[request.param]
    ours = exports.save_whole(folder / "ours", copy.deepcopy(bpe_tokenizer), decoder=DECODER, **build)
    export(str(ours), folder / "theirs")
    return request.param, ours, folder / "theirs"


def budgets_of(name: str) -> list[int | None]:
    """The scale factors that requests choose, in turns."""
    return [None] if name == "mlp2x_gelu" else [None, 1, 4]


@torch.no_grad()
def our_answers(folder, images, budgets) -> list[list[int]]:
    """Token ids of each image's answer."""
    ours, found = exports.Ours(folder), []
    for image, budget in zip(images, budgets, strict=True):
        pixels = process_images([image], ours.image_processor, ours.model.config)
        answer = ours.model.generate(
            torch.tensor([ours.ids([(QUESTION, 1, None)])]),
            images=pixels,
            image_sizes=[image.size],
            scale_factor=budget,
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
            do_sample=False,
        )
        found.append(answer[0].tolist())
    return found


def test_one_batch_of_several_budgets_has_our_answers(model):
    name, ours, theirs = model
    images = exports.pictures(6)
    budgets = (budgets_of(name) * len(images))[: len(images)]
    engine = LLM(
        str(theirs), dtype="float32", enforce_eager=True, max_model_len=512, seed=0, model_impl=BACKEND
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
    assert answers == our_answers(ours, images, budgets)


def content_of(image) -> list[dict]:
    """A message with a question about an image, as the OpenAI API has it."""
    written = io.BytesIO()
    image.save(written, "PNG")
    url = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]


class Server:
    """`vllm serve` of a folder."""

    def __init__(self, folder, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "512", "--served-model-name", "tiny", "--trust-request-mm-kwargs"]
        command += ["--model-impl", BACKEND]
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE
        while not self.is_up():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)

    def is_up(self) -> bool:
        try:
            return self.get("/health") == 200
        except OSError:
            return False

    def get(self, path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
            return answer.status

    def ask(self, image, budget) -> tuple[int, dict]:
        """Status and body of an answer."""
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content_of(image)}],
            "max_tokens": LENGTH,
            "min_tokens": LENGTH,
            "temperature": 0,
            "return_token_ids": True,
        }
        if budget is not None:
            body["mm_processor_kwargs"] = {"scale_factor": budget}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def test_the_server_answers_32_clients_at_once_and_refuses_other_scales(model, tmp_path):
    name, ours, theirs = model
    images = exports.pictures(32)
    budgets = (budgets_of(name) * len(images))[: len(images)]
    server = Server(theirs, tmp_path / "log")
    try:
        for wrong in (7, "two", True) if len(set(budgets)) > 1 else ():  # where there is a choice
            status, body = server.ask(images[0], wrong)
            assert status == 400, (wrong, body)
            assert "scale_factor" in json.dumps(body)
        with ThreadPoolExecutor(len(images)) as clients:
            found = list(clients.map(server.ask, images, budgets))
        assert [status for status, _ in found] == [200] * len(images), server.log.read_text()
        answers = [body["choices"][0]["token_ids"] for _, body in found]
        assert server.get("/health") == 200
    finally:
        server.process.terminate()
        server.process.wait(PATIENCE)
    assert answers == our_answers(ours, images, budgets)
