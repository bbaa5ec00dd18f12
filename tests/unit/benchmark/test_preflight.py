"""The preflight's page for given figures, its checks one by one, and checks that hang or are killed."""

import argparse
import json
from dataclasses import asdict

import pytest
import torch
from messages import assert_names
from training_parts import flags, save_parts

from llava.benchmark.preflight import checks
from llava.benchmark.preflight.checks import CHECKS, Request
from llava.benchmark.preflight.command import check, read_script
from llava.benchmark.preflight.features import FEATURES, Feature, close, try_feature
from llava.benchmark.preflight.page import REMEDIES, as_markdown
from llava.errors import UserError

FIGURES = {
    "machine": {
        "gpus": [{"name": "NVIDIA H100 80GB HBM3", "gib": 79.6, "free_gib": 79.0}] * 8,
        **{"driver": "580.1", "cuda": "13.0", "nccl": "2.28", "processor": "a processor", "cores": 96},
        **{"main_memory_gib": 1000.0, "python": "3.12.3", "torch": "2.11.0", "transformers": "5.17.0"},
    },
    "bf16": {"outcome": "works"},
    "liger": {"outcome": "not installed", "remedy": "pip install liger-kernel"},
    "ceilings": {"tflops": 798.0, "tb_s": 3.0},
    "all_reduce": {"gb_s": 380.0, "ranks": 8},
    "disk": {
        **{"folder": "/data/out", "free_gib": 900.0, "write_gb_s": 2.0, "checkpoint_gib": 90.0},
        **{"needed_gib": 194.0, "save_steps": 500},
    },
    "data": {"samples_per_second": 900.0, "workers": 32, "mean_positions": 402.0, "longest": 2048},
    "memory": {
        **{"lines": ["batches of up to 8,565 positions keep their activations"], "zero": "zero2"},
        **{"parts_gib": {"weights": 13.2, "activations": 49.3}, "total_gib": 75.7, "batch_size": 16},
        **{"fits": True, "longest": 2048, "usual": 656, "largest_of_longest": 28},
        **{"largest_of_usual": 90, "largest_of_usual_kept": 13},
    },
    "steps": {
        **{"seconds": [6.0, 6.1, 6.4], "max_steps": 5198, "samples_a_step": 128, "peak_memory_gib": 70.0},
        "nodes": 1,
    },
}


def page(**changes) -> str:
    outcomes = {name: {"figures": figures} for name, figures in FIGURES.items()}
    for name, change in changes.items():
        outcomes[name] = change if "problem" in change else {"figures": {**FIGURES[name], **change}}
    results = {
        "script": "v1_5/finetune",
        "command": "torchrun train_mem.py",
        "date": "2026-11-27T12:00+00:00",
    }
    return as_markdown({**results, "checks": outcomes})


def test_a_page_says_what_is_there_and_when_the_run_ends():
    text = page()
    assert "# Preflight of scripts/v1_5/finetune.sh\n\n2026-11-27T12:00+00:00. No problem was found." in text
    assert text.count("| NVIDIA H100 80GB HBM3 | 80 | 79 |") == 8
    assert "| liger | not installed | pip install liger-kernel |" in text
    assert "| bfloat16 product | 798 TFLOP/s |" in text
    assert "| all-reduce of 8 ranks | 380.0 GB/s of bus bandwidth |" in text
    assert "900.0 samples/s by 32 workers; the steps use 21.0 |" in text
    assert "A checkpoint of 90.0 GiB takes 48 s every 500 steps. The run needs 194.0 GiB." in text
    assert "| zero2 | 13.2 | 49.3 | 75.7 |" in text
    assert "| 656 positions, activations kept | 13 |" in text
    # 5,198 steps of 6.1 s are 8 h 48 min; ten checkpoints of 48 s are 8 min
    assert "5,198 steps will take **8 h 48 min**, and saving 8 min." in text
    assert "Started now, the run ends on 2026-11-27 at 20:56." in text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"disk": {"free_gib": 100.0}}, ("**disk**: ", "194 GiB", "/data/out", "100 GiB free")),
        (
            {"memory": {"fits": False}},
            ("16 records of 2048 positions", "BATCH_SIZE=28"),
        ),
        ({"data": {"samples_per_second": 20.0}}, ("20 samples per second", "21")),
        (
            {"machine": {"gpus": [{"name": "A100", "gib": 80.0, "free_gib": 20.0}]}},
            ("60 of 80 GiB of A100", "other GPUs"),
        ),
        (
            {"deepspeed": {"problem": "no nvcc."}},
            ("**deepspeed**: no nvcc.", "DEEPSPEED_CONFIG=none"),
        ),
        ({"steps": {"problem": "out of memory"}}, ("**steps**: out of memory.",)),
    ],
)
def test_a_problem_comes_first_with_what_to_do(changes, parts):
    verdict, problem = page(**changes).splitlines()[2:5:2]
    assert verdict.endswith("1 problem(s) found:")
    assert_names(problem, *parts)


def test_a_users_mistake_that_several_checks_met_is_said_once_with_its_own_remedy():
    mistake = {"problem": "--scale_factor 5 does not divide 24; choose from 1, 2.", "says_remedy": True}
    verdict, problem = page(data=mistake, steps=mistake).splitlines()[2:5:2]
    assert verdict.endswith("1 problem(s) found:")
    assert problem == f"- **data, steps**: {mistake['problem']}"


@pytest.mark.parametrize("missing", CHECKS)
def test_the_page_is_there_whatever_check_fails(missing):
    text = page(**{missing: {"problem": "it failed"}})
    assert f"- **{missing}**: it failed. What to do: {REMEDIES[missing]}." in text
    assert text.endswith("```\ntorchrun train_mem.py\n```\n")
    assert set(REMEDIES) == set(CHECKS)
    assert set(checks.FEATURES) == set(FEATURES)


@pytest.mark.slow
def test_a_check_that_hangs_or_dies_or_raises_is_a_problem_and_no_more(tmp_path):
    request, log = asdict(Request(["python"], [], 1, None, [])), tmp_path / "log"
    said = f"it was stopped after 0 s; {log} has its output"
    assert check("machine", request, 0.01, log) == {"problem": said}
    assert check("no_such_check", request, 60, log)["problem"].startswith("KeyError: 'no_such_check' (")
    assert "Traceback" in log.read_text()
    assert "figures" in check("machine", request, 60, log)
    assert not log.exists()


def test_a_users_mistake_in_a_check_is_its_problem(request_of, tmp_path):
    checks.answer("memory", json.dumps(asdict(request_of())), str(tmp_path / "result.json"))
    outcome = json.loads((tmp_path / "result.json").read_text())
    assert "no GPU" in outcome["problem"]
    assert outcome["says_remedy"]


# ---- The checks


@pytest.fixture(scope="module")
def request_of(tmp_path_factory, bpe_tokenizer):
    parts = save_parts(tmp_path_factory.mktemp("parts"), bpe_tokenizer)
    argv = flags(parts, tmp_path_factory.mktemp("out") / "run", "conversations.json", version="qwen_2")
    argv += ["--model_max_length", "128", "--dataloader_num_workers", "0"]
    return lambda *more, **changes: Request(
        **{**asdict(Request(["python"], [*argv, *more], 1, None, [])), **changes}
    )


def test_the_machine(request_of):
    found = checks.machine(request_of())
    assert found["gpus"] == []
    assert found["cores"] > 0
    assert found["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--tune_mm_mlp_adapter", "True"], ["--lora_enable", "True"], []])
def test_the_disk_needs_what_a_run_writes(request_of, monkeypatch, mode):
    request = request_of(*mode)
    sized = checks.sizes(request)
    monkeypatch.setattr(checks, "sizes", lambda request: sized)
    monkeypatch.setattr(checks, "MAX_WRITTEN", 2**22)
    found, size = checks.disk(request), sized[2]
    result = 4 * size.learning + (0 if mode else size.frozen)
    assert found["checkpoint_gib"] * 2**30 == pytest.approx(result + 12 * size.learning)
    assert found["needed_gib"] * 2**30 == pytest.approx(2 * (result + 12 * size.learning) + result)
    assert found["write_gb_s"] > 0
    assert found["save_steps"] == 2


def test_the_records_are_prepared_and_their_positions_counted(request_of, monkeypatch):
    monkeypatch.setattr(checks, "SECONDS_OF_DATA", 0.2)
    found = checks.data(request_of())
    assert found["records"] == 12
    assert found["samples_per_second"] > 0
    assert 20 < found["mean_positions"] <= found["longest"] <= 128


def test_records_that_are_not_there_are_named(request_of):
    with pytest.raises(UserError, match="nowhere.json"):
        checks.data(request_of("--data_path", "nowhere.json"))


def test_the_memory_of_another_machine(request_of):
    decided = ["--deepspeed", "--gradient_checkpointing", "--recompute_above"]
    more = ["--deepspeed", "mine.json", "--gradient_checkpointing", "True", "--recompute_above", "9"]
    found = checks.memory(request_of(*more, gpu_memory_mib=81920, num_devices=8, decided=decided))
    assert found["zero"] == "zero2"
    assert found["fits"]
    assert found["largest_of_usual_kept"] == 1024  # the largest number that is tried
    assert sum(found["parts_gib"].values()) == pytest.approx(found["total_gib"])
    with pytest.raises(UserError, match="has no GPU"):
        checks.memory(request_of(decided=decided))


@pytest.mark.slow
def test_two_ranks_add_up_a_tensor(request_of):
    launcher = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert checks.all_reduce(request_of(launcher=launcher))["gb_s"] > 0
    assert checks.all_reduce(request_of()) == {"ranks": 1}


def test_a_model_that_would_fill_main_memory_is_not_tried_on_a_cpu(request_of, monkeypatch):
    monkeypatch.setattr(checks, "FLOAT32_TRAINING_BYTES", 10**9)
    with pytest.raises(UserError, match="no GPU.*needs"):
        checks.steps(request_of())


def test_a_run_on_several_nodes_is_tried_on_this_one_alone():
    words = "python -m torch.distributed.run --nnodes 4 --node_rank 1 --master_addr a --master_port 29500"
    launcher = [*words.split(), "--nproc_per_node", "8"]
    here, nodes = checks.on_this_node(launcher)
    assert " ".join(here) == "python -m torch.distributed.run --standalone --nproc_per_node 8"
    assert nodes == 4
    assert checks.on_this_node(["python"]) == (["python"], 1)
    assert "random weights on one of 4 nodes, without communication between nodes, took" in page(
        steps={"nodes": 4}
    )


@pytest.mark.slow
def test_a_process_that_fails_says_its_own_error():
    with pytest.raises(RuntimeError, match=r"^preflight: --data_path is wrong$"):
        checks.run(["sh", "-c", "echo preflight: --data_path is wrong; echo Error of the launcher; exit 1"])
    with pytest.raises(RuntimeError, match=r"^SomeError: it failed$"):
        checks.run(["sh", "-c", "echo SomeError: it failed; echo more; exit 1"])


# ---- What works here


def test_bf16_is_a_real_product_with_a_gradient():
    assert try_feature("bf16", "cpu") == {"outcome": "works"}


def test_a_feature_that_computes_something_else_does_not_work(monkeypatch):
    def wrong(device):
        close(torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 2.0]))

    monkeypatch.setitem(FEATURES, "bf16", Feature("", wrong, needs_gpu=False))
    with pytest.raises(ArithmeticError, match="relative error 0.378"):
        try_feature("bf16", "cpu")
    with pytest.raises(ArithmeticError, match="relative error nan"):
        close(torch.tensor([float("nan")]), torch.ones(1))


def test_what_is_not_installed_says_how_to_get_it_and_what_needs_a_gpu_is_not_tried(monkeypatch):
    assert try_feature("flash_attention_2", "cpu") == {"outcome": "needs a GPU"}
    monkeypatch.setitem(FEATURES, "liger", Feature("", print, "no_such_module", "pip install it"))
    assert try_feature("liger", "cuda") == {"outcome": "not installed", "remedy": "pip install it"}


# ---- The script


def arguments(**changes) -> argparse.Namespace:
    given = {"script": "v1_5/finetune", "flags": [], "gpus": None, "gpu_memory_gib": None}
    return argparse.Namespace(**{**given, **changes})


def test_the_script_itself_is_asked_what_it_starts(monkeypatch):
    monkeypatch.setenv("MODEL", "my/model")
    monkeypatch.setenv("GRADIENT_CHECKPOINTING", "False")
    request, command = read_script(arguments(flags=["--lora_r", "8"], gpus=8, gpu_memory_gib=80))
    assert request["flags"][:2] == ["--model_name_or_path", "my/model"]
    assert request["flags"][-4:] == ["--lora_r", "8", "--bf16", "True"]
    assert (request["num_devices"], request["gpu_memory_mib"]) == (8, 81920)
    assert request["decided"] == ["--deepspeed"]
    assert "train_mem.py --model_name_or_path my/model" in command
    assert Request(**json.loads(json.dumps(request))).num_devices == 8


@pytest.mark.parametrize(
    ("script", "variables", "said"),
    [
        ("v1_5/nothing", {}, "--for v1_5/nothing.*scripts/v1_5/nothing.sh"),
        ("heatmap", {}, "--for heatmap"),
        ("finetune", {"BATCH_SIZE": "0"}, "BATCH_SIZE.*'0'"),
    ],
)
def test_a_script_that_is_not_there_or_refuses_is_said(monkeypatch, script, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        read_script(arguments(script=script))
