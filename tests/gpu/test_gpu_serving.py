"""The engine and the API on the device: 32 clients at once each get the answer that one gets alone."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import Queue

import pytest
import tiny
import torch
from pictures import data_url, encoded
from PIL import Image

from llava.conversation import question_prompt, template_named
from llava.decoding import Decoding
from llava.inference import load_model
from llava.serve.engine import Engine

TEMPLATE = template_named("vicuna_v1")
WORDS = ["what colour is the circle?", "is it blue?", "the answer", "red or blue, what is the triangle?"]
COLOURS = ["red", "blue", "green", None]
CLIENTS = 32


@pytest.fixture(scope="module")
def engine(device, tmp_path_factory):
    folder = tiny.save_llava(tmp_path_factory.mktemp("llava") / "tiny")
    batches: list[int] = []
    loaded = load_model(str(folder), device=str(device), torch_dtype=torch.float32)
    engine = Engine(loaded, on_batch=batches.append)
    engine.batches = batches
    yield engine
    engine.close()


def asked(index: int) -> tuple[str, str | None, int]:
    """The request of client `index`: question, colour of the picture, longest answer."""
    return WORDS[index % 4], COLOURS[index // 4 % 4], 6 + index % 5


def answer(engine, index: int) -> tuple[str, str]:
    """Send one request to the engine and wait; returns (text, reason of the end)."""
    text, colour, longest = asked(index)
    images = [] if colour is None else [Image.new("RGB", (60, 48), colour)]
    prompt = question_prompt(text, len(images), TEMPLATE)
    request = engine.prepare(prompt, images, Decoding(max_new_tokens=longest))
    events: Queue = Queue()
    with closing(engine.admit()) as ticket:
        ticket.start(request, events.put)
        said = ""
        while True:
            event = events.get(timeout=120)
            assert event.error is None, event.error
            said += event.text
            if event.finish:
                return said, event.finish


def test_32_clients_of_the_engine_get_what_each_gets_alone(engine):
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda index: answer(engine, index), range(CLIENTS)))
    assert max(engine.batches) > 1
    assert together == [answer(engine, index) for index in range(CLIENTS)]
    assert len(set(together)) > 4
    assert engine.num_open == 0


@contextmanager
def served(engine):
    """Runs the application on a socket of this process; returns its address."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")
    for package in ("fastapi", "prometheus_client", "pydantic"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra serve)")
    from llava.serve.app import create_app

    app = create_app(engine, "tiny")
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def ask(address: str, index: int) -> tuple[int, str, str]:
    """Send a request over HTTP, every second one as a stream; returns (status, text, reason of the end)."""
    text, colour, longest = asked(index)
    parts: list[dict] = [{"type": "text", "text": text}]
    if colour is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(encoded(40, 30, colour=colour))}})
    streams = index % 2 == 1
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": longest}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps({**body, "stream": streams}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        read = response.read().decode()
    if not streams:
        (choice,) = json.loads(read)["choices"]
        return response.status, choice["message"]["content"], choice["finish_reason"]
    lines = [line.removeprefix("data: ") for line in read.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    said = "".join(choice["delta"].get("content") or "" for choice in choices)
    return response.status, said, choices[-1]["finish_reason"]


def test_32_clients_of_the_api_get_what_each_gets_alone(engine):
    with served(engine) as address:
        with ThreadPoolExecutor(CLIENTS) as pool:
            together = list(pool.map(lambda index: ask(address, index), range(CLIENTS)))
        assert {status for status, *_ in together} == {200}
        assert together == [ask(address, index) for index in range(CLIENTS)]
    assert engine.num_open == 0
    assert len(set(together)) > 4
