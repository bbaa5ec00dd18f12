"""run.json, metrics.jsonl and loss.png: what is in them, and that a run does not need them."""

import json
import math
import sys
from argparse import Namespace

import pytest
from PIL import Image
from transformers import TrainerState

from llava.train import run_record


def row(step, loss):
    return {"step": step, "loss": loss, "learning_rate": 0.5}


@pytest.fixture
def run(tmp_path):
    history = [row(step, 5 - step / 10) for step in range(1, 31)]
    return Namespace(output_dir=str(tmp_path / "a run")), TrainerState(log_history=history)


@pytest.fixture
def folder(run, tmp_path):
    (tmp_path / "a run").mkdir()
    return tmp_path / "a run"


def test_a_resumed_run_drops_the_rows_that_come_again_and_half_a_line(run, folder):
    args, state = run
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 40, "loss": 9}\n{"st')
    run_record.rewrite_metrics(args, state)
    state.log_history.append(row(31, math.nan))
    run_record.append_metrics(args, state)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 32))
    assert json.loads(lines[-1])["loss"] is None
    assert "NaN" not in lines[-1]
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_the_curve_leaves_out_what_is_not_finite(run, folder):
    args, state = run
    state.log_history += [row(31, math.nan), {"step": 31, "train_runtime": 1.0}]
    run_record.draw_loss(args, state)
    assert Image.open(folder / "loss.png").size == (840, 480)


def test_the_curve_s_mean_ends_at_each_point():
    assert run_record.running_mean([1.0, 3.0]) == [1.0, 2.0]
    assert run_record.running_mean([0.0] * 5 + [1.0] * run_record.SMOOTHING)[-1] == 1.0


def test_without_matplotlib_the_run_goes_on_and_says_so(run, folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_record.draw_loss(*run)
    assert "pip install matplotlib" in caplog.text
    assert not (folder / "loss.png").exists()


def test_a_record_that_cannot_be_written_is_said_and_the_run_goes_on(run, caplog):
    args, state = run  # the folder does not exist
    state.is_world_process_zero = True
    run_record.RunRecord(None, None, None, {}).on_log(args, state, None)
    assert "the run goes on without it" in caplog.text


def test_versions_tell_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(run_record, "PACKAGES", ("torch", "no-such-package"))
    found = run_record.versions()
    assert found.keys() == {"python", "torch", "no-such-package"}
    assert found["no-such-package"] is None
