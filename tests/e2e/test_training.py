"""Both stages on tiny models: the trained parts, the files, a kill, and errors for bad input."""

import json
import re
import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_parts import flags, losses
from transformers import GenerationConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.validate import validate
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_projector
from llava.model.multimodal_projector.visualprism import VisualPrism
from llava.train import saving
from llava.train.train import train


def stage1(parts, output_dir, **changes):
    train(flags(parts, output_dir, "captions.json", tune_mm_mlp_adapter=True, **changes))


def stage2(parts, output_dir, stage1_dir, **changes):
    adapter = {"pretrain_mm_mlp_adapter": stage1_dir / "mm_projector.bin", "version": "qwen_2"}
    train(flags(parts, output_dir, "conversations.json", **{**adapter, "mm_projector_lr": 1e-3, **changes}))


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """The folders of both stages, which are run once."""
    folder = tmp_path_factory.mktemp("trained")
    stage1(parts, folder / "stage1")
    stage2(parts, folder / "stage2", folder / "stage1", group_by_modality_length=True)
    return folder


@pytest.mark.fast
def test_stage_1_leaves_projector_and_config_and_no_language_model(trained, parts):
    names = {path.name for path in (trained / "stage1").iterdir()}
    assert names == {
        "mm_projector.bin",
        "config.json",
        "trainer_state.json",
        "checkpoint-4",
        "run.json",
        "metrics.jsonl",
        "loss.png",
    }
    config = json.loads((trained / "stage1" / "config.json").read_text())
    assert config["mm_projector_type"] == "visualprism"
    assert config["mm_vision_tower"] == str(parts / "tower")
    assert config["tune_mm_mlp_adapter"] is True
    state = torch.load(trained / "stage1" / "mm_projector.bin", weights_only=True)
    assert all(key.startswith("model.mm_projector.") for key in state)
    assert "model.mm_projector.q_local.fusion.1.running_mean" in state


@pytest.mark.transformers
@pytest.mark.fast
def test_stage_2_leaves_a_folder_that_answers_by_itself(trained, parts, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained / "stage2", folder)
    tokenizer, model, processor, _ = load_pretrained_model(str(folder))
    pixels = processor(Image.new("RGB", (40, 30), "red"), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[*tokenizer("What?").input_ids, IMAGE_TOKEN_INDEX]])
    assert model.generate(ids, images=pixels, max_new_tokens=3, do_sample=False).shape[0] == 1
    assert model.config.conv_version == "qwen_2"
    # the end of a turn in the template, at which plain `generate` stops
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in GenerationConfig.from_pretrained(folder).eos_token_id
    assert model.config.tune_mm_mlp_adapter is False


@pytest.mark.fast
def test_only_what_should_learn_changes(trained, parts):
    language_model = load_file(parts / "language_model" / "model.safetensors")
    tower = load_file(parts / "tower" / "model.safetensors")
    final = load_file(trained / "stage2" / "model.safetensors")
    for key, value in tower.items():
        assert torch.equal(final[f"model.vision_tower.vision_tower.{key}"], value), key
    changed = [key for key, value in language_model.items() if not torch.equal(final[key], value)]
    assert len(changed) == len(language_model)
    projector = read_projector(trained / "stage1" / "mm_projector.bin")
    assert not torch.equal(final["model.mm_projector.mlp.0.weight"], projector["mlp.0.weight"])


def test_frozen_parts_stay_as_they_were(parts, trained, tmp_path):
    stage2(parts, tmp_path / "a", trained / "stage1", freeze_backbone=True, max_steps=1)
    stage2(parts, tmp_path / "b", trained / "stage1", freeze_mm_mlp_adapter=True, max_steps=1)
    language_model = load_file(parts / "language_model" / "model.safetensors")
    backbone_frozen = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(backbone_frozen[key], value) for key, value in language_model.items())
    projector = read_projector(trained / "stage1" / "mm_projector.bin")
    adapter_frozen = load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(adapter_frozen["model.mm_projector.mlp.0.weight"], projector["mlp.0.weight"])


@pytest.mark.transformers
@pytest.mark.parametrize("stage", [1, 2])
def test_a_killed_run_started_again_gives_the_uninterrupted_losses_and_weights(
    parts, trained, tmp_path, stage
):
    """The kill comes after the checkpoint of step 2; a later, half-written one is beside it."""
    output_dir = tmp_path / "run"
    run = stage1 if stage == 1 else stage2
    rest = () if stage == 1 else (trained / "stage1",)
    run(parts, output_dir, *rest, save_total_limit=5, max_steps=4)
    expected_losses = losses(output_dir)
    weights = "mm_projector.bin" if stage == 1 else "model.safetensors"
    expected = (output_dir / weights).read_bytes() if stage == 2 else read_projector(output_dir / weights)
    shutil.rmtree(output_dir / "checkpoint-4")
    for path in output_dir.iterdir():
        if path.is_file():
            path.unlink()
    (output_dir / "checkpoint-3").mkdir()
    (output_dir / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    (output_dir / saving.STAGING).mkdir()
    run(parts, output_dir, *rest, save_total_limit=5, max_steps=4)
    assert losses(output_dir) == expected_losses
    if stage == 2:
        assert (output_dir / weights).read_bytes() == expected
    else:
        resumed = read_projector(output_dir / weights)
        assert all(torch.equal(resumed[key], value) for key, value in expected.items())


@pytest.mark.transformers
def test_a_checkpoint_has_no_name_before_all_of_it_is_written(parts, tmp_path, monkeypatch):
    publish, written = saving.publish_checkpoint, []

    def look(output_dir, name, *rest):
        assert not (output_dir / name).exists()
        written.append({path.name for path in (output_dir / saving.STAGING / name).iterdir()})
        publish(output_dir, name, *rest)

    monkeypatch.setattr(saving, "publish_checkpoint", look)
    stage1(parts, tmp_path / "run", max_steps=4)
    whole = {path.name for path in (tmp_path / "run" / "checkpoint-4").iterdir()}
    assert {"mm_projector.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", saving.STATE_FILE} <= whole
    assert written == [whole, whole]


def test_elastic_budgets_are_drawn_anew_each_step_and_again_after_a_resume(parts, tmp_path, monkeypatch):
    drawn = []
    encode = VisualPrism.forward
    monkeypatch.setattr(
        VisualPrism, "forward", lambda self, features, s=None: drawn.append(s) or encode(self, features, s)
    )
    elastic = ["--elastic_scale_factors", "1", "2", "4"]
    arguments = flags(parts, tmp_path / "run", "captions.json", tune_mm_mlp_adapter=True, max_steps=8)
    train([*arguments, "--save_total_limit", "9", *elastic])
    assert len(set(drawn)) > 1
    assert set(drawn) <= {1, 2, 4}
    whole, expected = list(drawn), losses(tmp_path / "run")
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "trainer_state.json").unlink()
    drawn.clear()
    train([*arguments, "--save_total_limit", "9", *elastic])
    assert drawn == whole[4:]
    assert losses(tmp_path / "run") == expected
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["elastic_scale_factors"] == [1, 2, 4]


def test_an_elastic_budget_that_does_not_divide_the_grid_is_refused(parts, tmp_path):
    with pytest.raises(SystemExit, match="--scale_factor.*4x4.*3"):
        train([*flags(parts, tmp_path, "captions.json"), "--elastic_scale_factors", "2", "3"])


def test_a_complete_run_is_left_alone(trained, parts):
    before = (trained / "stage1" / "mm_projector.bin").stat().st_mtime_ns
    stage1(parts, trained / "stage1")
    assert (trained / "stage1" / "mm_projector.bin").stat().st_mtime_ns == before


def test_old_checkpoints_are_removed_and_nothing_half_written_stays(trained):
    assert [path.name for path in saving.checkpoints(trained / "stage2")] == ["checkpoint-4"]
    assert not (trained / "stage2" / saving.STAGING).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": 3}, "--scale_factor.*4x4.*3.*1, 2, 4"),
        ({"mm_projector_type": "prism"}, "--mm_projector_type 'prism' is unknown; choose from"),
        ({"image_aspect_ratio": "round"}, "--image_aspect_ratio must be"),
        ({"on_bad_record": "ignore"}, "--on_bad_record must be fail or skip"),
        ({"version": "v9"}, "v9"),
        ({"pretrain_mm_mlp_adapter": "nowhere.bin"}, r"nowhere.bin does not exist"),
        ({"vision_tower": "nowhere"}, "--vision_tower 'nowhere'"),
        ({"data_path": "nowhere.json"}, "nowhere.json"),
        ({"freeze_mm_mlp_adapter": True, "tune_mm_mlp_adapter": True}, "exclude each other"),
    ],
)
def test_what_a_user_got_wrong_is_named(parts, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        train(flags(parts, tmp_path / "out", "captions.json", **changes))
    (line,) = str(stop.value).splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_a_missing_image_fails_by_name_or_is_counted_and_listed(parts, tmp_path, caplog):
    records = json.loads((parts / "captions.json").read_text())
    records[3]["image"] = "lost.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    common = {"tune_mm_mlp_adapter": True, "data_path": tmp_path / "data.json", "max_steps": 1}
    with pytest.raises(SystemExit, match=r"lost\.png"):
        train(flags(parts, tmp_path / "fails", "captions.json", **common))
    with caplog.at_level("INFO"):
        train(flags(parts, tmp_path / "skips", "captions.json", on_bad_record="skip", **common))
    assert "left out" in caplog.text
    assert "lost.png" in caplog.text
    assert (tmp_path / "skips" / "mm_projector.bin").is_file()


def test_training_leaves_out_what_the_validator_names_and_goes_to_its_end(parts, tmp_path, caplog):
    good = json.loads((parts / "conversations.json").read_text())
    bad = [
        {"conversations": [{"from": "human", "value": "half \ude00"}, {"from": "gpt", "value": "Yes."}]},
        {**good[0], "image": "nul\0.png"},
        {**good[0], "image": "x" * 300},
        {**good[0], "image": "grey.tiff"},
        {"video": "a.mp4", "conversations": good[-1]["conversations"]},
        {"images": ["0.png"], "conversations": good[-1]["conversations"]},
    ]
    system = {"system": "Be brief.", "conversations": good[-1]["conversations"]}
    Image.new("F", (9, 9)).save(parts / "images" / "grey.tiff")
    (tmp_path / "data.json").write_text(json.dumps([*bad, system, *good]), encoding="utf-8-sig")
    problems = []
    validate([str(tmp_path / "data.json")], str(parts / "images"), "qwen_2", True, report=problems.append)
    changes = {
        "data_path": tmp_path / "data.json",
        "version": "qwen_2",
        "num_train_epochs": 1,
        "max_steps": -1,
    }
    with caplog.at_level("INFO"):
        train(flags(parts, tmp_path / "out", "captions.json", on_bad_record="skip", **changes))
    assert len(problems) == len(bad)
    assert all(problem in caplog.text for problem in problems)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_run_leaves_its_flags_versions_data_and_rates(trained, parts):
    run = json.loads((trained / "stage2" / "run.json").read_text())
    assert run["training_arguments"]["mm_projector_lr"] == 1e-3
    assert run["model_arguments"]["version"] == "qwen_2"
    assert run["versions"]["torch"] == torch.__version__
    assert run["parameters"]["vision_tower"]["learns"] == 0 < run["parameters"]["vision_tower"]["frozen"]
    assert run["parameters"]["mm_projector"]["frozen"] == 0 < run["parameters"]["mm_projector"]["learns"]
    assert run["data"] == {
        "files": [str(parts / "conversations.json")],
        "records": 12,
        "bad": 0,
        "truncated": 0,
    }
    assert (run["started_from_step"], run["step"], run["max_steps"], run["world_size"]) == (0, 4, 4, 1)
    rows = [json.loads(line) for line in (trained / "stage1" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["visual_tokens_per_second"] == pytest.approx(4 * row["samples_per_second"], rel=0.01)
        assert row["text_tokens_per_second"] > row["samples_per_second"]
        assert row["peak_memory_gib"] > 0


def test_tensorboard_gets_what_metrics_jsonl_gets(parts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage1(parts, tmp_path, report_to="tensorboard", max_steps=2)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(losses(tmp_path))
    assert len(events.Scalars("train/visual_tokens_per_second")) == 2


def test_a_reporter_that_is_not_installed_is_said_at_once(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="--report_to wandb: .*pip install wandb"):
        stage1(parts, tmp_path / "out", report_to="wandb")
    assert not (tmp_path / "out").exists()
