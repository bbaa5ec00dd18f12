"""Validation during training: figures by hand, several ranks, resuming, and the best checkpoint."""

import itertools
import json
import shutil

import pytest
import ranks
import torch
from modes import LORA, trainer_of
from safetensors.torch import load_file
from stages import stage_flags
from training_parts import flags, losses
from transformers import TrainerCallback

from llava.constants import IGNORE_INDEX
from llava.model.checkpoint import read_projector
from llava.train import llava_trainer, saving
from llava.train.train import prepare, train

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "dataloader_num_workers": 0}


@pytest.fixture(scope="module")
def held_out(parts, tmp_path_factory):
    """Five records with pictures and two with text only; their answers differ in length."""
    records = json.loads((parts / "conversations.json").read_text())[:5]
    for index, answer in enumerate(("Hello!", "It is raining, and it will rain on.")):
        turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": answer}]
        records.append({"id": f"text {index}", "conversations": turns})
    file = tmp_path_factory.mktemp("held_out") / "val.json"
    file.write_text(json.dumps(records))
    return file


def evaluations(output_dir) -> list[dict]:
    """The evaluations in metrics.jsonl without times; checks that the trainer's state has the same."""
    state = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    logged = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    from_state, from_metrics = (
        [
            {name: row[name] for name in row if name.endswith(("_loss", "_accuracy", "step", "epoch"))}
            for row in rows
            if any(name.startswith("eval_") for name in row)
        ]
        for rows in (state, logged)
    )
    assert from_state == from_metrics
    return from_metrics


@torch.no_grad()
def by_hand(trainer, dataset) -> tuple[float, float]:
    """Loss and accuracy of a set, computed record by record from all logits."""
    model, loss, right, count = trainer.model.eval(), 0.0, 0, 0
    for sample in dataset:
        batch = trainer.data_collator([sample])
        merged = model.merge_inputs(
            batch["input_ids"], batch["attention_mask"], batch["labels"], batch.get("images")
        )
        logits = model(inputs_embeds=merged.inputs_embeds).logits[0, :-1]
        labels = merged.labels[0, 1:]
        loss += torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"
        ).item()
        right += int((logits.argmax(dim=1) == labels).sum())
        count += int((labels != IGNORE_INDEX).sum())
    return loss / count, right / count


@pytest.mark.transformers
def test_figures_are_means_over_tokens_and_training_goes_on_as_without(parts, held_out, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(parts / "conversations.json", tmp_path / "other" / "val.json")
    given = {
        **EVALUATED,
        "eval_data_path": held_out,
        "per_device_eval_batch_size": 4,
        "lora_dropout": 0.5,
    }
    argv = flags(parts, tmp_path / "run", "conversations.json", version="qwen_2", **{**LORA, **given})
    at = argv.index("--eval_data_path") + 2
    trainer = prepare([*argv[:at], str(tmp_path / "other" / "val.json"), *argv[at:]])
    trainer.train()
    trainer.save_result()
    rows = evaluations(tmp_path / "run")
    assert [(row["step"], *(name for name in row if name.endswith("_loss"))) for row in rows] == [
        (step, f"eval_{name}_loss") for step in (2, 4) for name in ("val", "val_2")
    ]
    for row, (name, dataset) in zip(rows[2:], trainer.eval_dataset.items(), strict=True):
        found = row[f"eval_{name}_loss"], row[f"eval_{name}_accuracy"]
        assert found == pytest.approx(by_hand(trainer, dataset), rel=1e-4)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {name: data["records"] for name, data in run["eval_data"].items()} == {"val": 7, "val_2": 12}
    plain = {**LORA, "lora_dropout": 0.5, "version": "qwen_2"}
    train(flags(parts, tmp_path / "plain", "conversations.json", **plain))
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


@pytest.mark.parametrize("config", [None, "zero3"])
def test_two_ranks_count_each_record_once(parts, held_out, tmp_path, config):
    """Seven records on two ranks: one rank has no record in a last batch, and one batch has no picture."""
    start = {"eval_strategy": "steps", "eval_steps": 9, "eval_on_start": True, "eval_data_path": held_out}
    start |= {"max_steps": 1, "save_strategy": "no", "per_device_eval_batch_size": 1}
    alone = tmp_path / "alone"
    train(stage_flags(parts, alone, 2, **start))
    extra = {"deepspeed": f"scripts/{config}.json"} if config else {}
    argv = stage_flags(parts, tmp_path / "run", 2, **start, **extra)
    assert ranks.run(argv, tmp_path / "log", 2) == [0, 0], (tmp_path / "log").read_text()
    rows, expected = evaluations(tmp_path / "run"), evaluations(alone)
    assert [row["step"] for row in rows] == [0, 1]  # at the start, and after the last step
    assert rows[0] == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.transformers
def test_a_resume_goes_on_evaluating_and_makes_up_for_what_sigterm_prevented(parts, held_out, tmp_path):
    given = {"eval_strategy": "steps", "eval_steps": 2, "eval_data_path": held_out, "save_strategy": "steps"}
    given |= {"save_steps": 3, "max_steps": 7, "save_total_limit": 9}
    trainer_of(parts, tmp_path / "whole", **given).train()
    whole = saving.checkpoints(tmp_path / "whole")[-1]
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", whole)
    expected = evaluations(whole)
    assert [row["step"] for row in expected] == [2, 4, 6, 7]

    class Sigterm(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            cut.guard.sigterm.received = state.global_step == 3

    cut = trainer_of(parts, tmp_path / "cut", **given)
    cut.add_callback(Sigterm())
    cut.train()
    last = saving.checkpoints(tmp_path / "cut")[-1]
    assert last.name == "checkpoint-4"
    assert "eval_val_loss" not in saving.read_state(last)["log_history"][-1]
    for start in (last, tmp_path / "cut" / "checkpoint-6"):  # evaluated after step 4, then after step 6
        again = trainer_of(parts, tmp_path / "cut", **given)
        again.train(resume_from_checkpoint=str(start))
    end = saving.checkpoints(tmp_path / "cut")[-1]
    shutil.copy(tmp_path / "cut" / "metrics.jsonl", end)
    assert evaluations(end) == expected


def test_an_evaluation_by_epoch_comes_ahead_of_the_checkpoint_of_its_step(parts, tmp_path):
    given = {"eval_strategy": "epoch", "eval_data_path": parts / "captions.json"}
    train(stage_flags(parts, tmp_path, 1, **given, save_steps=6, max_steps=8, save_total_limit=9))
    assert [(row["step"], row["epoch"]) for row in evaluations(tmp_path)] == [(6, 1), (8, 8 / 6)]
    history = saving.read_state(tmp_path / "checkpoint-6")["log_history"]
    assert "eval_captions_loss" in history[-1]


KINDS = {"projector": {"tune_mm_mlp_adapter": True}, "adapters": LORA, "whole": {}}


def weights(folder) -> dict:
    if (folder / "mm_projector.bin").is_file():
        return read_projector(folder / "mm_projector.bin")
    name = "adapter_model.safetensors"
    return load_file(folder / (name if (folder / name).is_file() else "model.safetensors"))


@pytest.mark.transformers
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_checkpoint_stays_and_is_the_result_after_a_resume_too(
    parts, held_out, tmp_path, monkeypatch, caplog, kind
):
    figures = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5}

    def told(sums, prefix):
        return {f"{prefix}_loss": figures[trainer.state.global_step], f"{prefix}_accuracy": 0.5}

    monkeypatch.setattr(llava_trainer, "token_metrics", told)
    given = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    given |= {"eval_data_path": held_out, "load_best_model_at_end": True, "max_steps": 4, **KINDS[kind]}
    trainer = trainer_of(parts, tmp_path, **given)
    trainer.add_callback(EndAfter(3))
    trainer.train()
    assert [folder.name for folder in saving.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    trainer = trainer_of(parts, tmp_path, **given)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with caplog.at_level("INFO"):
        trainer.save_result()
    assert [folder.name for folder in saving.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert "the result has the weights of checkpoint-2: eval_val_loss 1" in caplog.text
    found, best, last = map(weights, (tmp_path, tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"))
    assert all(torch.equal(found[name], best[name]) for name in best)
    assert not all(torch.equal(found[name], last[name]) for name in last)


class EndAfter(TrainerCallback):
    """Ends a run after the checkpoint of a step, like a kill."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def worse_each_time(rank: int) -> None:
    """Makes the loss of an evaluation its number, so that each is worse than the previous one."""
    number = itertools.count(1)
    llava_trainer.token_metrics = lambda sums, prefix: {f"{prefix}_loss": float(next(number))}


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_loads_the_best_checkpoint_of_two_ranks(parts, tmp_path, config):
    given = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    given |= {"eval_data_path": parts / "captions.json", "max_steps": 2}
    argv = stage_flags(parts, tmp_path / "run", 1, **given, deepspeed=f"scripts/{config}.json")
    status = ranks.run(argv, tmp_path / "log", 2, prepare=worse_each_time)
    assert status == [0, 0], (tmp_path / "log").read_text()
    run = tmp_path / "run"
    result, best, last = map(weights, (run, run / "checkpoint-1", run / "checkpoint-2"))
    assert all(torch.equal(result[name], best[name]) for name in best)
    assert not all(torch.equal(result[name], last[name]) for name in last)
