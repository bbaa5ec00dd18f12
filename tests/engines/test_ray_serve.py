"""scripts/ray_serve.yaml serves our answers, and each request can choose its number of visual tokens."""

import copy
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_vllm.sh")
pytest.importorskip("ray.serve.llm", reason="needs Ray Serve LLM: bash scripts/test_vllm.sh")

import exports
from openai_server import LENGTH, QUESTION, Server
from ports import free_port

from llava.export.folder import export

CONFIG = Path(__file__).parents[2] / "scripts/ray_serve.yaml"


def adapted(config: dict, model: Path, port: int) -> dict:
    """The configuration, changed for a tiny model on a CPU."""
    config["http_options"]["port"] = port
    (model_config,) = config["applications"][0]["args"]["llm_configs"]
    model_config["model_loading_config"] = {"model_id": "tiny", "model_source": str(model)}
    model_config["placement_group_config"] = {"bundles": [{"CPU": 1}]}
    model_config["deployment_config"]["ray_actor_options"] = {"num_cpus": 0}
    model_config["engine_kwargs"] |= {
        "max_model_len": 512,
        "dtype": "float32",
        "enforce_eager": True,
        "distributed_executor_backend": "mp",
    }
    return config


def test_replicas_answer_by_the_budget_of_each_request(tmp_path, bpe_tokenizer):
    ours = exports.save_whole(
        tmp_path / "ours",
        copy.deepcopy(bpe_tokenizer),
        decoder=exports.FOR_VLLM,
        mm_projector_type="visualprism_v2",
    )
    export(str(ours), tmp_path / "theirs")
    config = adapted(yaml.safe_load(CONFIG.read_text()), tmp_path / "theirs", port := free_port())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    images, budgets = exports.pictures(6), [None, 1, 4] * 2
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # Ray's default of 5 s is too short on a busy machine
        "RAY_TMPDIR": tempfile.gettempdir(),  # a short path, because Ray's sockets are below it
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    serve = str(Path(sys.executable).with_name("serve"))
    with Server(
        [serve, "run", str(tmp_path / "config.yaml")], port, tmp_path / "log", **environment
    ) as server:
        status, body = server.ask(images[0], 7)
        assert status == 400, body
        assert "scale_factor" in json.dumps(body)
        with ThreadPoolExecutor(len(images)) as clients:
            found = list(clients.map(server.ask, images, budgets))
        assert [status for status, _ in found] == [200] * len(images), server.log.read_text()
    answers = [body["choices"][0]["token_ids"] for _, body in found]
    assert answers == exports.Ours(ours).answers(QUESTION, images, budgets, LENGTH)
