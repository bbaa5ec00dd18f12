"""A preflight on a GPU: features, ceilings, and the memory budget compared with a step's real peak."""

from __future__ import annotations

import argparse

import pytest
from budgets import peak_gib, save_shapes

from llava.benchmark.preflight import checks
from llava.benchmark.preflight.features import FEATURES, try_feature
from llava.benchmark.speed import training
from llava.benchmark.speed.shapes import SHAPES


@pytest.mark.parametrize("name", sorted(set(FEATURES) - {"deepspeed"}))  # deepspeed changes its whole process
def test_what_is_installed_works(cuda, name):
    outcome = try_feature(name, "cuda")
    if outcome["outcome"] == "not installed":
        pytest.skip(f"{FEATURES[name].module} is not installed")
    assert outcome == {"outcome": "works"}


def test_the_machine_names_its_gpu_and_the_memory_that_is_free(cuda):
    found = checks.machine(checks.Request(["python"], [], 1, None, []))
    assert found["gpus"]
    assert all(0 < gpu["free_gib"] <= gpu["gib"] for gpu in found["gpus"])
    assert found["driver"] != "unknown"


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_steps_peak_is_what_the_budget_says(cuda, tmp_path, recomputes):
    shape = SHAPES["1.5b"].truncated(4)
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    words = ["--shape", "1.5b", "--batch_size", "16", "--scale_factors", "2", "--repeats", "1"]
    args = parser.parse_args([*words, *(["--gradient_checkpointing"] if recomputes else [])])
    row = training.measure(shape, args, "cuda", "bfloat16")[-1]
    expected = peak_gib(save_shapes(tmp_path, [shape]), vars(args), row)
    assert expected == pytest.approx(row["peak_gib"], rel=0.1)
