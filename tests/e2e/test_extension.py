"""--extend continues a finished run to a new last step, as if it had this last step from the start."""

import json

import pytest
from messages import assert_names
from stages import stage_flags, weights
from training_parts import losses

from llava.train.train import train


def learning_rates(output_dir) -> list[float]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [row["learning_rate"] for row in history if "loss" in row]


@pytest.fixture(scope="module")
def constant(parts, tmp_path_factory):
    """A run of eight steps, which is more than an epoch, with a constant learning rate."""
    folder = tmp_path_factory.mktemp("constant")
    train(stage_flags(parts, folder, 1, max_steps=8, lr_scheduler_type="constant"))
    return folder


@pytest.mark.transformers
@pytest.mark.parametrize("length", [{"max_steps": 8}, {"max_steps": -1, "num_train_epochs": 8 / 6}], ids=str)
def test_an_extended_run_is_the_longer_run(parts, constant, tmp_path, caplog, length):
    common = {"lr_scheduler_type": "constant"}
    train(stage_flags(parts, tmp_path, 1, max_steps=4, **common))
    longer = stage_flags(parts, tmp_path, 1, **length, **common)
    with pytest.raises(SystemExit, match=r"4 steps.*--extend True"):
        train(longer)
    with caplog.at_level("INFO"):
        train([*longer, "--extend", "True"])
    assert "continues from step 4 of 4 to step 8" in caplog.text
    assert losses(tmp_path) == losses(constant)
    assert weights(tmp_path) == weights(constant)
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 9))
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["extended_from"], run["started_from_step"], run["step"]) == (4, 4, 8)
    caplog.clear()
    with caplog.at_level("INFO"):
        train([*longer, "--extend", "True"])
    assert "is complete" in caplog.text


def test_the_schedule_is_that_of_the_new_length_and_the_log_says_the_jump(parts, tmp_path, caplog):
    common = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.25}
    train(stage_flags(parts, tmp_path / "long", 1, max_steps=8, **common))
    train(stage_flags(parts, tmp_path / "run", 1, max_steps=4, **common))
    with caplog.at_level("INFO"):
        train(stage_flags(parts, tmp_path / "run", 1, max_steps=8, extend=True, **common))
    rates, expected = learning_rates(tmp_path / "run"), learning_rates(tmp_path / "long")
    assert rates[4:] == expected[4:]
    assert rates[:4] != expected[:4]
    assert_names(caplog.text, f"from 0 to {expected[4]:g} at once", "cosine")


def test_a_run_without_checkpoints_cannot_be_extended(parts, tmp_path):
    train(stage_flags(parts, tmp_path, 1, max_steps=1, save_strategy="no"))
    with pytest.raises(SystemExit, match="--max_steps 2.*no checkpoint.*--output_dir"):
        train(stage_flags(parts, tmp_path, 1, max_steps=2, extend=True))
