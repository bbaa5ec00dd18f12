"""Every flag in published training scripts is still accepted."""

import importlib.util
import re

import pytest

from llava.errors import UserError
from llava.train.arguments import parse
from llava.train.refused import REFUSED

REQUIRED = [
    "--model_name_or_path",
    "lm",
    "--vision_tower",
    "tower",
    "--data_path",
    "data.json",
    "--output_dir",
    "out",
]

# Values that are refused, with the reason
REFUSED_VALUES: dict[str, str] = dict.fromkeys(("--bits 4", "--bits 8"), "add --lora_enable True, or freeze")
NOT_HERE = {
    "--deepspeed": "needs the train extra",
    "--tf32": "needs a GPU",
    "--report_to": "needs its package",
}


def published(golden) -> list[list[str]]:
    """Each flag with each of its published values, as tokens of a command line."""
    commands = []
    for line in (golden / "train_flags.txt").read_text().splitlines():
        if line.startswith("--"):
            flag, _, values = line.partition(" ")
            for value in values.split(" | "):
                value = value.strip().strip('"')
                commands.append([flag, value] if values else [flag])
    return commands


def test_each_published_flag_and_value_parses_or_is_refused_with_a_reason(golden):
    commands = published(golden)
    assert len(commands) > 80
    for command in commands:
        if command[0] in NOT_HERE:
            continue
        overridden = [item for pair in zip(REQUIRED[::2], REQUIRED[1::2], strict=True) for item in pair]
        text = " ".join(command)
        if text in REFUSED_VALUES:
            with pytest.raises(ValueError, match=re.escape(REFUSED_VALUES[text])):
                parse([*overridden, *command])
        else:
            parse([*overridden, *command])


def test_shared_pictures_are_refused_with_attention_that_takes_no_mask(monkeypatch):
    monkeypatch.setattr("llava.train.arguments.check_installed", lambda attention: None)
    command = [*REQUIRED, "--packing", "True", "--share_images", "True", "--attn_implementation"]
    with pytest.raises(UserError, match="--share_images.*--attn_implementation flash_attention_2.*sdpa"):
        parse([*command, "flash_attention_2"])
    assert parse([*command, "sdpa"])[1].share_images


def test_every_flag_of_training_may_be_written_with_hyphens():
    def parsed(mark: str) -> tuple:
        words = [*REQUIRED, "--scale_factor", "3", "--data_weights", "0.5", "--lora_enable", "True"]
        model, data, training = parse([word.replace("_", mark) for word in words])
        return model, data, training.lora_enable

    assert parsed("-") == parsed("_")
    assert parsed("-")[0].scale_factor == 3


def test_all_published_flags_exist(golden):
    from dataclasses import fields

    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

    known = {f"--{f.name}" for cls in (ModelArguments, DataArguments, TrainingArguments) for f in fields(cls)}
    assert {command[0] for command in published(golden)} <= known


def test_each_flag_of_our_own_is_read_beyond_its_declaration():
    """A flag that no code reads has no effect. Other tests check the effect of each flag."""
    import ast
    from dataclasses import fields
    from pathlib import Path

    import transformers

    import llava
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

    read = set()
    for file in Path(llava.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                read.add(getattr(node.args[1], "value", None))
    theirs = {field.name for field in fields(transformers.TrainingArguments)}
    classes = (ModelArguments, DataArguments, TrainingArguments)
    ours = {field.name for cls in classes for field in fields(cls)} - theirs
    assert len(ours) > 50
    assert ours - read == set()


@pytest.mark.parametrize("name", ["is_multimodal", "lazy_preprocess"])
def test_what_is_always_so_is_refused_otherwise(name):
    with pytest.raises(ValueError, match=f"--{name} False"):
        parse([*REQUIRED, f"--{name}", "False"])


def test_renamed_flags_keep_their_effect():
    _, _, training = parse(
        [*REQUIRED, "--evaluation_strategy", "no", "--warmup_ratio", "0.03", "--max_steps", "200"]
    )
    assert training.eval_strategy == "no"
    assert training.get_warmup_steps(200) == 6
    with pytest.raises(ValueError, match="--warmup_ratio and --warmup_steps"):
        parse([*REQUIRED, "--warmup_ratio", "0.03", "--warmup_steps", "5"])


def test_contradictions_end_the_run_in_the_flags_own_spelling():
    with pytest.raises(ValueError, match="--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter"):
        parse([*REQUIRED, "--tune_mm_mlp_adapter", "True", "--freeze_mm_mlp_adapter", "True"])
    with pytest.raises(ValueError, match="--model_name_or_path is missing"):
        parse(REQUIRED[2:])
    with pytest.raises(ValueError, match="--data_path is missing"):
        parse([*REQUIRED[:4], *REQUIRED[6:]])


# ---- Flags of transformers that would not do what they say ----

VALUES = {  # for flags for which "True" is not a value; none is the default
    **{"eval_accumulation_steps": "2", "include_for_metrics": "loss", "eval_do_concat_batches": "False"},
    **{"hub_strategy": "end", "label_smoothing_factor": "0.1"},
    **{"label_names": "labels", "length_column_name": "words", "data_seed": "7"},
    **{
        "accelerator_config": '{"split_batches": true}',
        "fsdp": "full_shard",
        "fsdp_config": '{"min_num_params": 1}',
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_that_would_not_do_what_it_says_is_refused_with_the_reason(name):
    flag, _, value = name.partition(" ")
    value = value or VALUES.get(flag, "True")
    with pytest.raises(UserError) as refusal:
        parse([*REQUIRED, f"--{flag}", value])
    assert str(refusal.value) == f"--{name} {REFUSED[name]}. Leave it out."


def test_defaults_of_refused_flags_may_be_given():
    parse(
        [*REQUIRED, "--use_liger_kernel", "False", "--eval_strategy", "no", "--label_smoothing_factor", "0"]
    )
    parse([*REQUIRED, "--optim", "adafactor", "--save_strategy", "epoch", "--lr_scheduler_type", "linear"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--group_by_length True", "flag --group_by_length True.*--help"),
        ("--use_ipex True", "flag --use_ipex True"),
        ("--optim schedule_free_adamw", "--optim schedule_free_adamw: .*install"),
        ("--report_to tensor_board", "--report_to tensor_board.*tensorboard"),
        ("--warmup_ratio 3", "--warmup_ratio.*3"),
    ],
)
def test_a_flag_or_value_that_does_not_exist_is_refused(given, message):
    if "schedule_free" in given and importlib.util.find_spec("schedulefree"):
        pytest.skip("the optimizer is installed")
    with pytest.raises(UserError, match=message):
        parse([*REQUIRED, *given.split()])


STEPS = "--eval_strategy steps --eval_steps 5"
BEST = f"--eval_data_path a/val.json {STEPS} --save_steps 5 --load_best_model_at_end True"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (STEPS, "--eval_strategy needs .*; add --eval_data_path"),
        ("--eval_data_path val.json", "--eval_data_path would .*; add --eval_strategy"),
        (
            "--eval_data_path val.json --eval_strategy steps",
            "--eval_strategy steps and --eval_steps N need each other",
        ),
        (
            f"--eval_data_path {{0..5}}.tar {STEPS}",
            "--eval_data_path .*: tar shards are",
        ),
        (
            f"{BEST} --save_steps 10",
            "--load_best_model_at_end .* got steps and steps; .* got 10 and 5",
        ),
        (f"{BEST} --save_strategy epoch", "give .* the same value, got epoch and steps"),
        (
            f"{BEST} --eval_data_path a.json b.json",
            "must be one of eval_a_loss, eval_a_accuracy, eval_b_loss, .* got loss",
        ),
        (
            f"{BEST} --metric_for_best_model f1",
            "--metric_for_best_model must be one of eval_val_loss, .* got f1",
        ),
        ("--metric_for_best_model loss", "--metric_for_best_model needs an evaluation"),
        ("--dataloader_num_workers many", "--dataloader_num_workers must be a number or auto, got 'many'"),
    ],
)
def test_what_validation_and_the_loader_lack_is_said(given, message):
    with pytest.raises(UserError, match=message):
        parse([*REQUIRED, *given.split()])


@pytest.mark.parametrize(
    ("given", "metric", "greater"),
    [
        ("", "eval_val_loss", False),
        ("--metric_for_best_model val_accuracy", "eval_val_accuracy", True),
        ("--eval_data_path a.json b.json --metric_for_best_model eval_b_loss", "eval_b_loss", False),
    ],
)
def test_the_metric_for_the_best_model_is_one_of_a_set(given, metric, greater):
    training = parse([*REQUIRED, *BEST.split(), *given.split()])[2]
    assert (training.metric_for_best_model, training.greater_is_better) == (metric, greater)


def test_evaluation_may_be_asked_for_by_its_older_name():
    training = parse([*REQUIRED, "--eval_data_path", "a.json", "--evaluation_strategy", "epoch"])[2]
    assert training.eval_strategy == "epoch"


@pytest.mark.parametrize("pinned", [True, False])
def test_batches_from_pinned_memory_do_not_wait_for_the_gpu(monkeypatch, pinned):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.TrainingArguments._setup_devices", None)  # it would use the GPU
    training = parse([*REQUIRED, "--dataloader_pin_memory", str(pinned)])[2]
    assert training.accelerator_config.non_blocking is pinned
