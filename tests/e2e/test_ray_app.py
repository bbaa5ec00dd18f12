"""The API as a Ray Serve application: the same answers to the same client, from a replica."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import pytest
import tiny

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra ray)")
openai = pytest.importorskip("openai", reason="openai is not installed (extra dev)")

SERVE = """
import os, sys
import ray
from ray import serve
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, _temp_dir=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
from llava.serve.ray_app import app
serve.run(app)
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    model = tiny.save_llava(tmp_path_factory.mktemp("ray") / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scratch = tempfile.mkdtemp(prefix="ray")  # a short path: Ray's sockets lie below it
    environment = {
        **os.environ,
        "LLAVA_API_ARGS": f"--model-path {model} --device cpu --max-requests 4 --max-new-tokens 800",
        "LLAVA_NUM_CPUS": "0.5",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # Ray's own 5 s are too few on a busy machine
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, scratch, str(port)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any(line == "ready\n" for line in process.stdout), "Ray Serve did not start; its log says why"
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def test_a_replica_answers_streams_and_refuses_like_the_api(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        request = {"model": "tiny", "messages": [{"role": "user", "content": "what colour?"}]}
        whole = client.chat.completions.create(**request, max_tokens=16).choices[0].message.content
        chunks = client.chat.completions.create(**request, max_tokens=16, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        with pytest.raises(openai.BadRequestError, match="up to 800"):
            client.chat.completions.create(**request, max_tokens=801)


def test_a_client_that_leaves_a_replica_frees_its_place(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "what colour?"}],
            max_tokens=800,
            stream=True,
        )
        next(iter(answer))
        answer.close()
    give_up = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{url}/metrics") as page:
            text = page.read().decode()
        if "llava_requests_open 0.0" in text and "llava_cancelled_total 1.0" in text:
            return
        assert time.monotonic() < give_up, text
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"LLAVA_API_ARGS": ""}, "LLAVA_API_ARGS.*not set"),
        ({"LLAVA_MIN_REPLICAS": "3", "LLAVA_MAX_REPLICAS": "2"}, "LLAVA_MIN_REPLICAS=3"),
        ({"LLAVA_NUM_GPUS": "all"}, "LLAVA_NUM_GPUS.*'all'"),
    ],
)
def test_wrong_settings_are_named(monkeypatch, environment, says):
    monkeypatch.setenv("LLAVA_API_ARGS", "--model-path model")
    from llava.serve.ray_app import build

    with pytest.raises(ValueError, match=says):
        build({**os.environ, **environment})


def test_settings_reach_the_deployment(monkeypatch):
    monkeypatch.setenv("LLAVA_API_ARGS", "--model-path model --max-requests 5")
    from llava.serve.ray_app import replica_options

    options = replica_options({**os.environ, "LLAVA_MAX_REPLICAS": "4", "LLAVA_NUM_GPUS": "0.5"})
    assert options["autoscaling_config"]["max_replicas"] == 4
    assert options["ray_actor_options"]["num_gpus"] == 0.5
    assert options["max_ongoing_requests"] == 6
