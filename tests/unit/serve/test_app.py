"""The application without a socket: limits, errors in OpenAI's shape, and invalid bodies."""

import asyncio
import json
import logging
import threading

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import data_url, encoded, header_only_png

from llava.decoding import Stopping
from llava.errors import UserError
from llava.inference import load_model
from llava.serve.engine import Engine
from llava.serve.images import ImageLimits

pytest.importorskip("fastapi", reason="the API's packages are not installed (extra serve)")
httpx = pytest.importorskip("httpx", reason="httpx is not installed (extra dev)")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tiny.save_llava(tmp_path_factory.mktemp("llava"))
    engine = Engine(load_model(str(folder), device="cpu"))
    yield engine
    engine.close()


def make_app(engine, **options):
    from llava.serve.app import Limits, create_app

    limits = Limits(
        max_body_bytes=20_000,
        max_images=2,
        max_prompt_tokens=400,
        max_new_tokens=8,
        default_new_tokens=4,
        image=ImageLimits(max_bytes=5_000, max_pixels=200**2),
    )
    return create_app(engine, "tiny", limits, **options)


@pytest.fixture(scope="module")
def app(engine):
    return make_app(engine)


def ask(app, method="POST", path="/v1/chat/completions", headers=None, **body):
    async def send():
        # an exception that the application does not handle gives status 500 and does not end the test
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            return await client.request(method, path, headers=headers, **body)

    return asyncio.run(send())


def body(content="what colour is it?", **fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


PICTURE = picture(data_url(encoded()))
LETTERS = {"type": "text", "text": "what is an <image>?"}


def test_an_answer_has_openais_shape_and_counts_visual_tokens(app):
    plain = ask(app, json=body()).json()
    seen = ask(app, json=body([{"type": "text", "text": "what colour is it?"}, PICTURE])).json()
    assert plain["choices"][0]["message"]["role"] == "assistant"
    assert plain["choices"][0]["finish_reason"] in ("stop", "length")
    assert (
        plain["usage"]["total_tokens"]
        == plain["usage"]["prompt_tokens"] + plain["usage"]["completion_tokens"]
    )
    difference = seen["usage"]["prompt_tokens"] - plain["usage"]["prompt_tokens"]
    fewer = ask(
        app, json=body([{"type": "text", "text": "what colour is it?"}, PICTURE], scale_factor=3)
    ).json()
    assert difference >= 9
    assert seen["usage"]["prompt_tokens"] - fewer["usage"]["prompt_tokens"] == 9 - 4


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "has 'tiny'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "alternate"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "empty"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [PICTURE, LETTERS, LETTERS]}]}, 400, "<image> for"),
        ({"top_k": -2}, 400, "top_k"),
        ({"min_tokens": 2}, 400, "min_tokens is not supported"),
        ({"model": "x" * 9000}, 404, "has 'tiny'"),
        ({"messages": [{"role": "user", "content": [PICTURE] * 3}]}, 400, "2 images"),
        ({"messages": [{"role": "user", "content": "blue " * 900}]}, 400, "tokens"),
        ({"max_tokens": 9}, 400, "at most 8"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 2}, 400, "n is not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"scale_factor": 5}, 400, "scale_factor"),
        ({"messages": [{"role": "user", "content": [picture("http://a.org/")]}]}, 400, "a data URL"),
        (
            {"messages": [{"role": "user", "content": [picture(data_url(header_only_png(9999, 9999)))]}]},
            400,
            "9999x9999",
        ),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, 413, "20000 bytes"),
    ],
)
def test_a_refusal_has_openais_shape_and_says_why(app, change, status, says):
    response = ask(app, json=body() | change)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert len(response.content) < 2000


def test_a_body_without_a_declared_length_is_read_no_further_than_the_limit(app):
    read = []

    async def chunks():
        for _ in range(100):
            read.append(1)
            yield b" " * 1000

    assert ask(app, content=chunks()).status_code == 413
    assert len(read) <= 22


def test_paths_and_methods_that_are_not_there_have_openais_shape_too(app):
    assert ask(app, "GET", "/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found."
    assert len(ask(app, "GET", "/v1/" + "x" * 5000).content) < 2000
    response = ask(app, "GET")
    assert response.status_code == 405
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_system_message_and_earlier_turns_reach_the_prompt(app):
    def tokens(*messages):
        return ask(app, json=body() | {"messages": list(messages)}).json()["usage"]["prompt_tokens"]

    system, user = {"role": "system", "content": "red"}, {"role": "user", "content": "blue"}
    answer = {"role": "assistant", "content": "a triangle"}
    assert tokens(system, user) < tokens(user)  # the system text replaces the template's long one
    assert tokens(user, answer, user) > tokens(user)


def test_a_key_is_asked_for_below_v1_alone(engine):
    app = make_app(engine, api_key="secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}):
        response = ask(app, "GET", "/v1/models", headers)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"
    models = ask(app, "GET", "/v1/models", {"Authorization": "Bearer secret"}).json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert ask(app, "GET", "/health").json() == {"status": "ok"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "beArer"])
@pytest.mark.parametrize("between", [" ", "  "])
def test_the_keys_scheme_may_be_written_in_any_case(engine, scheme, between):
    app = make_app(engine, api_key="secret")
    for key, status in (("secret", 200), ("Secret", 401)):
        headers = {"Authorization": scheme + between + key}
        assert ask(app, "GET", "/v1/models", headers).status_code == status
    assert ask(app, "GET", "/v1/models", {"Authorization": "Basic secret"}).status_code == 401


def test_a_model_is_there_by_its_name(engine):
    from llava.serve.app import create_app

    app = create_app(engine, "org/tiny")
    listed = ask(app, "GET", "/v1/models").json()["data"]
    assert ask(app, "GET", "/v1/models/org/tiny").json() == listed[0]
    for name in ("tiny", "org%2Fother", "x" * 5000, "%ED%A0%80"):
        response = ask(app, "GET", f"/v1/models/{name}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert len(response.content) < 2000


def test_a_key_of_any_letters_is_compared_byte_by_byte(engine):
    app = make_app(engine, api_key="schlüssel")
    assert ask(app, "GET", "/v1/models", {"Authorization": "Bearer schlüssel".encode()}).status_code == 200
    assert ask(app, "GET", "/v1/models", {"Authorization": "Bearer schlussel"}).status_code == 401


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-3])
def test_a_temperature_next_to_none_is_answered_as_if_it_were_none(app, temperature):
    def answer(**fields):
        return ask(app, json=body(**fields)).json()["choices"][0]["message"]["content"]

    assert answer(temperature=temperature) == answer()


def test_a_full_server_answers_429_and_when_to_come_again(engine, app):
    tickets = [engine.admit() for _ in range(engine.max_requests)]
    try:
        response = ask(app, json=body())
    finally:
        for ticket in tickets:
            ticket.close()
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert response.json()["error"]["code"] == "queue_full"
    assert ask(app, json=body()).status_code == 200


def test_every_end_frees_the_requests_place(engine, app):
    for content in (b"{", json.dumps(body()).encode(), json.dumps(body(stream=True)).encode(), b" " * 30_000):
        ask(app, content=content)
    assert engine.num_open == 0


SYSTEM = {"role": "system", "content": "An <image> may come."}
USER = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "an <image> of <image>"}


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, USER],
        [{**SYSTEM, "role": "developer"}, USER],
        [USER, SAID, USER],
        [{"role": "user", "content": "<image>"}],
        [{"role": "user", "content": [LETTERS, LETTERS]}],
        [SYSTEM, {"role": "user", "content": [PICTURE]}, SAID, {"role": "user", "content": [LETTERS]}],
        [
            SYSTEM,
            {"role": "user", "content": "<image>"},
            SAID,
            {"role": "user", "content": [PICTURE, LETTERS]},
        ],
        [USER, {"role": "assistant", "content": ""}, USER],
        [USER, {"role": "assistant", "content": None}, USER],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "system", "content": ""}, USER],
    ],
    ids=ascii,
)
def test_marks_where_no_pictures_were_sent_and_all_that_was_said_are_read(app, messages):
    content = json.dumps(body() | {"messages": messages}).encode()
    response = ask(app, content=content)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["prompt_tokens"] < 400


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"min_p": 1}, {"top_k": 1, "min_p": 0.5, "top_p": 0.9}])
def test_sampling_from_the_likeliest_token_alone_is_greedy(app, fields):
    def answer(**fields):
        return ask(app, json=body(max_tokens=8, **fields)).json()["choices"][0]["message"]["content"]

    assert answer(temperature=2, **fields) == answer()


def test_a_repetition_penalty_changes_the_answer(app):
    def answer(**fields):
        return ask(app, json=body(max_tokens=8, **fields)).json()["choices"][0]["message"]["content"]

    assert answer(repetition_penalty=0.1) != answer(repetition_penalty=1) == answer()


@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 1e300])
@pytest.mark.parametrize("temperature", [1e-4, 2])
def test_extreme_sampling_is_answered(app, penalty, temperature):
    request = body(
        temperature=temperature, repetition_penalty=penalty, min_p=1e-300, top_k=2**62, top_p=5e-324
    )
    assert ask(app, json=request).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ValueError("secret path"), 500, "(ValueError)"),
        (UserError("the picture is too small."), 400, "the picture is too small."),
        (torch.OutOfMemoryError("secret path"), 503, "memory"),
    ],
    ids=["bug", "user", "memory"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_in_the_model_is_told_by_its_kind(engine, app, monkeypatch, error, status, says, stream):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(engine.model, "generate", fail)
    response = ask(app, json=body(stream=stream))
    assert response.status_code == (200 if stream else status)
    text = response.text.split("data: ")[-2] if stream else response.text
    assert says in json.loads(text)["error"]["message"]
    assert "secret" not in response.text


def test_a_bug_is_a_500_with_its_traceback_in_the_log_and_takes_no_other_along(
    engine, app, monkeypatch, caplog
):
    prepare = Engine.prepare

    def fail(engine, prompt, *args, **kwargs):
        if "guilty" in prompt:
            raise ValueError("secret path")
        return prepare(engine, prompt, *args, **kwargs)

    monkeypatch.setattr(Engine, "prepare", fail)
    with caplog.at_level(logging.ERROR):
        response = ask(app, json=body("guilty"))
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert any(record.exc_info and "secret path" in str(record.exc_info[1]) for record in caplog.records)
    assert ask(app, json=body()).status_code == 200
    assert engine.num_open == 0


@pytest.fixture
def own_engine(engine):
    """An engine that a test may close."""
    own = Engine(engine.loaded)
    yield own
    own.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("place", ["running", "waiting", "body"])
def test_a_server_that_ends_says_so_to_the_requests_under_way_and_to_new_ones(own_engine, place, stream):
    entered, go = threading.Event(), threading.Event()
    app = make_app(own_engine)

    def hold(size):
        entered.set()
        assert go.wait(60)

    own_engine.on_batch = hold  # this replaces the callback of the metrics

    async def chunks():
        yield json.dumps(body(stream=stream)).encode()[:-1]
        await asyncio.to_thread(entered.wait, 60)
        app.state.server.end()
        yield b"}"

    async def run():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            post = client.post
            url = "/v1/chat/completions"
            requests = [asyncio.ensure_future(post(url, json=body(stream=stream)))]
            await asyncio.to_thread(entered.wait, 60)
            if place == "waiting":
                requests.append(asyncio.ensure_future(post(url, json=body(stream=stream))))
                while own_engine.num_waiting == 0:
                    await asyncio.sleep(0.01)
            if place == "body":
                requests.append(asyncio.ensure_future(post(url, content=chunks())))
            else:
                app.state.server.end()
            responses = await asyncio.gather(*requests)
            late = await post(url, json=body(stream=stream))
            health = await client.get("/health")
        go.set()
        return responses, late, health

    responses, late, health = asyncio.run(run())
    assert health.status_code == 503
    for response in (*responses, late):
        if response.status_code == 200:
            assert stream
            *_, error, done = response.text.strip().split("\n\n")
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shutting_down"
            assert done == "data: [DONE]"
        else:
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
            assert response.json()["error"]["code"] == "shutting_down"
    assert late.status_code == 503
    assert own_engine.num_open == 0


def test_a_stream_whose_client_reads_nothing_ends_quietly_with_the_server(own_engine):
    app, content = make_app(own_engine), json.dumps(body(stream=True)).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    scope |= {"headers": [], "asgi": {"spec_version": "2.3", "version": "3.0"}}

    async def run():
        received, blocked = asyncio.Event(), asyncio.Event()

        async def receive():
            if received.is_set():
                await asyncio.Event().wait()
            received.set()
            return {"type": "http.request", "body": content}

        async def send(message):
            if message["type"] == "http.response.body":
                blocked.set()
                await asyncio.Event().wait()

        answering = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.wait_for(blocked.wait(), 60)
        app.state.server.end()
        answering.cancel()  # as uvicorn does, which would then log an error
        await answering

    asyncio.run(run())
    assert own_engine.num_open == 0


def test_events_are_ascii_for_clients_that_cut_lines_at_other_line_ends_too(app, monkeypatch):
    text = "a\u2028b\x85c\u2029\x0b\x1cé"
    monkeypatch.setattr(Stopping, "decode", lambda stopping, ids: text)
    monkeypatch.setattr(Stopping, "settled", lambda stopping, so_far: "")
    response = ask(app, json=body(stream=True))
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text
    assert response.content.isascii()


def test_a_failure_of_the_model_is_a_500_without_its_words(engine, app, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("secret path")

    monkeypatch.setattr(engine.model, "generate", fail)
    response = ask(app, json=body())
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"


def test_metrics_count_what_happened(app):
    ask(app, json=body())
    text = ask(app, "GET", "/metrics").text
    assert 'llava_requests_total{status="200"}' in text
    assert "llava_requests_open 0.0" in text
    for name in ("batch_size_count", "first_token_seconds_count", "new_tokens_total", "prompt_tokens_total"):
        value = next(line for line in text.splitlines() if line.startswith(f"llava_{name} "))
        assert float(value.split()[1]) > 0


TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(["<image>", "", " ", "\ud800", "</s>"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
URLS = st.one_of(
    st.text(max_size=30),
    st.just(data_url(encoded())),
    st.binary(max_size=60).map(data_url),
    st.integers(1, 70).map(lambda n: data_url(encoded()[:n])),
    st.sampled_from(["https://localhost/", "data:,", "data:image/png;base64,=", "http://[", "file:///x"]),
)
PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXT),
    st.builds(picture, URLS),
    JSON,
)
CONTENTS = TEXT | st.lists(PARTS, max_size=3) | JSON
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), max_size=4) | st.builds(
    lambda content: [{"role": "user", "content": content}], CONTENTS
)
FIELDS = {
    "max_tokens": st.integers(-1, 9) | JSON,
    "temperature": st.floats(0, 2) | JSON,
    "top_p": st.floats(0, 1) | JSON,
    "top_k": st.integers(-2, 400) | JSON,
    "min_p": st.floats(0, 1) | JSON,
    "repetition_penalty": st.floats(0, 1e300) | JSON,
    "seed": st.integers() | JSON,
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=4) | JSON,
    "stream": st.booleans() | JSON,
    "stream_options": JSON,
    "scale_factor": st.integers(-1, 7) | JSON,
    "n": st.integers(0, 2),
    "tools": JSON,
    "response_format": JSON,
}
BODIES = st.fixed_dictionaries({"model": st.just("tiny"), "messages": MESSAGES}, optional=FIELDS)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODIES.map(lambda value: json.dumps(value).encode()) | JSON.map(json.dumps) | st.binary(max_size=50))
def test_no_body_makes_the_server_fail(app, engine, content):
    response = ask(app, content=content)
    assert response.status_code in (200, 400, 404), response.text
    if response.headers["content-type"] == "application/json":
        assert ("error" in response.json()) == (response.status_code != 200)
    else:
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in response.text
    assert engine.num_open == 0
