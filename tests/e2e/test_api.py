"""`python -m llava.serve.api` as users run it: a process, a socket, and OpenAI's own client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import tiny
from pictures import data_url, encoded
from ports import free_port

pytest.importorskip("fastapi", reason="the API's packages are not installed (extra serve)")
openai = pytest.importorskip("openai", reason="openai is not installed (extra dev)")

KEY = "a-key"
MAX_REQUESTS = 16


@contextmanager
def served(folder, *flags):
    """The server of a tiny model: process, address and path of the log. It must end without a traceback."""
    model, port = tiny.save_llava(folder / "tiny"), free_port()
    command = [sys.executable, "-m", "llava.serve.api", "--model-path", model, "--device", "cpu"]
    command += ["--port", str(port), *flags]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(command, env={**os.environ, "TEST_KEY": KEY}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    give_up = time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                alive = process.poll() is None and time.monotonic() < give_up
                assert alive, (folder / "log").read_text()
                time.sleep(0.2)
        yield process, address
        process.terminate()
        code = process.wait(60)
    finally:
        process.kill()
    text = (folder / "log").read_text()
    assert code in (0, -15), text
    assert "Traceback" not in text, text


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    flags = ["--api-key-env", "TEST_KEY", "--max-requests", str(MAX_REQUESTS)]
    with served(tmp_path_factory.mktemp("api"), *flags) as (_, address):
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def question(text="what colour is the circle?", colour=None) -> list:
    parts = [{"type": "text", "text": text}]
    if colour is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(encoded(40, 30, colour=colour))}})
    return [{"role": "user", "content": parts}]


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def wait_for(condition) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_an_answer_follows_its_image_and_streams_to_the_same_text(client):
    answers = []
    for colour in ("red", "blue"):
        request = {"model": "tiny", "messages": question(colour=colour), "max_tokens": 16}
        whole = client.chat.completions.create(**request)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**request, **options))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        answers.append(whole.choices[0].message.content)
        assert len(pieces) > 4
        assert "".join(pieces) == answers[-1]
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert answers[0] != answers[1]


def test_fewer_visual_tokens_for_a_larger_scale_factor(client):
    def prompt_tokens(**fields):
        request = {"model": "tiny", "messages": question(colour="red"), "max_tokens": 1}
        return client.chat.completions.create(**request, extra_body=fields).usage.prompt_tokens

    assert prompt_tokens() - prompt_tokens(scale_factor=3) == 9 - 4


def test_errors_are_those_of_openais_client(url, client):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="has 'tiny'"):
        create(model="other", messages=question())
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(openai.BadRequestError, match="a data URL"):
        create(model="tiny", messages=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_32_clients_are_all_answered_or_refused_and_none_is_lost(url, client):
    def ask(i: int):
        colour = ("red", "blue", None)[i % 3]
        request = {"model": "tiny", "messages": question(colour=colour), "max_tokens": 8 + i % 5}
        try:
            if i % 2:
                return "".join(
                    chunk.choices[0].delta.content or ""
                    for chunk in client.chat.completions.create(**request, stream=True)
                )
            return client.chat.completions.create(**request).choices[0].message.content
        except openai.RateLimitError as error:
            return int(error.response.headers["Retry-After"])

    with ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(ask, range(32)))
    answered = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, str)}
    assert all(seconds > 0 for seconds in outcomes if isinstance(seconds, int))
    assert len(answered) >= MAX_REQUESTS
    for i in list(answered)[::6]:
        assert answered[i] == ask(i)  # the same as if it were the only request
    wait_for(lambda: metric(url, "llava_requests_open") == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the server knows its memory on Linux alone")
def test_the_servers_memory_stays_as_it_is(url, client):
    image = data_url(encoded(1000, 1000))  # 12 MB with its pixels in float32
    part = {"type": "image_url", "image_url": {"url": image}}
    request = {"model": "tiny", "messages": [{"role": "user", "content": [part]}], "max_tokens": 2}

    def burst() -> float:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: client.chat.completions.create(**request), range(8)))
        return metric(url, "process_resident_memory_bytes")

    burst()
    before = burst()
    assert [burst() for _ in range(2)][-1] < before + 64 * 2**20


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_frees_its_place(url, client, stream):
    before = metric(url, "llava_cancelled_total")
    request = {"model": "tiny", "messages": question(), "max_tokens": 800}
    if stream:
        answer = client.chat.completions.create(**request, stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(**request)
    wait_for(lambda: metric(url, "llava_requests_open") == 0)
    assert metric(url, "llava_cancelled_total") == before + 1


def test_a_server_that_is_stopped_says_so_to_every_request_under_way(tmp_path):
    """Requests: a stream, an answer that waits, an unfinished body, and a client that reads nothing."""
    request = {"model": "tiny", "messages": question(), "max_tokens": 800}

    def whole():
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**request, seed=1)
        return caught.value

    with served(tmp_path) as (process, address), ThreadPoolExecutor(1) as pool:
        host = address.removeprefix("http://").split(":")
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
        with client, socket.create_connection(host) as sending, socket.create_connection(host) as deaf:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            sending.sendall(head % 1000 + b"{")
            body = json.dumps(request | {"stream": True, "max_tokens": 400}).encode()
            deaf.sendall(head % len(body) + body)
            stream = iter(client.chat.completions.create(**request, stream=True))
            next(stream)
            waiting = pool.submit(whole)
            wait_for(lambda: metric(address, "llava_requests_open") == 4)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
            error = waiting.result(60)
            assert (error.status_code, error.body["code"]) == (503, "shutting_down")
            assert int(error.response.headers["Retry-After"]) > 0
            answer = b"".join(iter(lambda: sending.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"shutting_down" in answer
            assert process.wait(60) in (0, -15)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model-path", "nowhere"], "nowhere"),
        (["--model-path", "x", "--api-key-env", "NOT_SET_HERE"], "NOT_SET_HERE"),
    ],
)
def test_what_cannot_start_says_why_in_a_line(flags, says, capsys):
    from llava.serve.api import main

    assert main(flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
