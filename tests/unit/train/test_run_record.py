"""run.json, metrics.jsonl and loss.png: their contents, and that a run does not need them."""

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


def test_the_curve_has_validation_by_set_and_its_accuracy_below(run, folder):
    args, state = run
    for step, loss in ((10, 4.0), (20, math.nan), (30, 3.0)):
        for name in ("val", "my_loss"):
            figures = {f"eval_{name}_loss": loss, f"eval_{name}_accuracy": 0.5, f"eval_{name}_runtime": 1.0}
            state.log_history.append({"step": step, **figures})
    curves = run_record.metric_curves(state.log_history)
    assert curves["eval_val_loss"] == curves["eval_my_loss_loss"] == [(10, 4.0), (30, 3.0)]
    assert curves["eval_val_accuracy"] == [(10, 0.5), (20, 0.5), (30, 0.5)]
    assert len(curves) == 5
    run_record.draw_loss(args, state)
    assert Image.open(folder / "loss.png").size == (840, 960)


def test_the_workers_of_an_earlier_run_are_known_while_it_has_a_checkpoint(folder):
    (folder / "run.json").write_text('{"training_arguments": {"dataloader_num_workers": 3}}')
    assert run_record.earlier_workers(folder) is None
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert run_record.earlier_workers(folder) == 3
    (folder / "run.json").write_text("half of")
    assert run_record.earlier_workers(folder) is None


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
    assert "the run continues" in caplog.text


def test_versions_tell_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(run_record, "PACKAGES", ("torch", "no-such-package"))
    found = run_record.versions()
    assert found.keys() == {"python", "torch", "no-such-package"}
    assert found["no-such-package"] is None
