"""Packing, streaming and mixtures in whole runs: killed runs continue exactly, contradictions are refused."""

import json
import shutil
from argparse import Namespace

import pytest
import webdataset
from messages import assert_names
from training_parts import flags, losses

from llava.train.train import train
from llava.train.training_data import DataPosition

BASE = {"version": "qwen_2", "save_total_limit": 9, "max_steps": 8, "model_max_length": 200}


@pytest.fixture(scope="module")
def shards(parts, tmp_path_factory):
    """Six shards with four samples each, made of the conversations."""
    folder = tmp_path_factory.mktemp("shards")
    records = json.loads((parts / "conversations.json").read_text())
    for shard in range(6):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for number in range(4):
                record = records[(4 * shard + number) % 12]
                members = {"json": record}
                if "image" in record:
                    members["png"] = (parts / "images" / record["image"]).read_bytes()
                tar.write({"__key__": f"{number}", **members})
    return f"{folder}/{{0..5}}.tar"


def killed_after(output_dir, step: int) -> None:
    """The folder after a kill: no checkpoint after this step's, and no result."""
    for folder in output_dir.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    for path in output_dir.iterdir():
        if path.is_file():
            path.unlink()


RUNS = {
    "packing": {"packing": True},
    "packing_accumulation": {"packing": True, "gradient_accumulation_steps": 2},
    "stream": {"stream": True, "per_device_train_batch_size": 3},
    "stream_two_workers": {"stream": True, "dataloader_num_workers": 2, "gradient_accumulation_steps": 3},
    "packed_stream": {"stream": True, "packing": True, "dataloader_num_workers": 2},
    "mixture": {"mixture": True},
    "shared_images": {"mixture": True, "packing": True, "share_images": True},
    "grouped": {"group_by_modality_length": True, "per_device_train_batch_size": 3},
}


def command(parts, output_dir, shards, **changes) -> list[str]:
    if changes.pop("stream", False):
        changes["data_path"] = shards
    mixture = changes.pop("mixture", False)
    arguments = flags(parts, output_dir, "conversations.json", **{**BASE, **changes})
    if mixture:
        at = arguments.index("--data_path") + 2
        arguments[at:at] = [str(parts / "conversations.json"), "--data_weights", "1.5", "0.5"]
    return arguments


@pytest.mark.parametrize("run", RUNS)
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(parts, shards, tmp_path, run):
    """Also in a later epoch: eight steps are more than one epoch."""
    arguments = command(parts, tmp_path / "run", shards, **RUNS[run])
    train(arguments)
    expected_losses = losses(tmp_path / "run")
    expected = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert len(set(expected_losses)) == 8
    killed_after(tmp_path / "run", 6)
    train(arguments)
    assert losses(tmp_path / "run") == expected_losses
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == expected
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    epochs = [row["epoch"] for row in history if "loss" in row]
    assert epochs == sorted(epochs)


@pytest.mark.transformers
@pytest.mark.parametrize("run", ["stream", "mixture"])
def test_a_run_killed_after_its_last_checkpoint_trains_no_step_more(parts, shards, tmp_path, capsys, run):
    arguments = command(parts, tmp_path / "run", shards, **RUNS[run], max_steps=5)
    train(arguments)
    expected_losses = losses(tmp_path / "run")
    expected = (tmp_path / "run" / "model.safetensors").read_bytes()
    killed_after(tmp_path / "run", 5)
    capsys.readouterr()
    train(arguments)
    assert losses(tmp_path / "run") == expected_losses
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == expected
    assert "not a single sample" not in capsys.readouterr().err


def test_a_bad_sample_of_a_stream_is_left_out_and_counted(parts, shards, tmp_path, caplog):
    with webdataset.TarWriter(str(tmp_path / "bad.tar")) as tar:
        tar.write({"__key__": "lost", "json": {"conversations": []}})
    arguments = command(parts, tmp_path / "run", shards, stream=True, on_bad_record="skip")
    arguments += ["--per_device_train_batch_size", "4"]  # 32 samples: more than an epoch
    arguments.insert(arguments.index("--data_path") + 1, str(tmp_path / "bad.tar"))
    with caplog.at_level("INFO"):
        train(arguments)
    assert_names(caplog.text, "bad.tar, sample lost: 'conversations'")
    assert "bad sample(s)" in caplog.text
    with pytest.raises(SystemExit, match=r"bad.tar.*sample lost"):
        train([*arguments, "--on_bad_record", "fail", "--output_dir", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"packing": True, "group_by_modality_length": True},
            "--group_by_modality_length.* and --packing True",
        ),
        (
            {"packing": True, "train_sampling_strategy": "group_by_length"},
            "group_by_length.* and --packing True",
        ),
        ({"share_images": True}, "--share_images True.*--packing True"),
        ({"stream": True, "packing": True, "share_images": True}, "--share_images True.* tar shards"),
        ({"train_sampling_strategy": "batch_rebalance"}, "batch_rebalance.*--packing True"),
        ({"stream": True, "max_steps": -1}, "--max_steps is missing"),
        ({"stream": True, "group_by_modality_length": True}, "needs all records"),
        ({"stream": True, "dataloader_num_workers": 7}, "1 process.*--dataloader_num_workers"),
        ({"data_weights": 0}, "--data_weights.*0"),
    ],
)
def test_contradictions_are_refused(parts, shards, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        train(command(parts, tmp_path / "out", shards, **changes))
    assert not (tmp_path / "out").exists()


def test_grouping_by_length_reads_no_image_ahead(parts, shards, tmp_path, monkeypatch):
    from llava.data import sample

    opened = []
    load = sample.load_image
    monkeypatch.setattr(
        sample, "load_image", lambda source, **options: opened.append(source) or load(source, **options)
    )
    strategy = {"train_sampling_strategy": "group_by_length", "max_steps": 1}
    train(command(parts, tmp_path / "out", shards, **strategy))
    assert len(opened) <= 4  # accelerate reads one batch of two ahead


def test_the_epoch_reaches_a_sampler_below_what_deals_out_and_skips():
    """This happens on several processes after a resume."""
    from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
    from torch.utils.data import BatchSampler

    from llava.data.mixture import Mixture
    from llava.data.sampler import MixtureSampler

    sampler = MixtureSampler(Mixture([8]))
    dealt = SkipBatchSampler(BatchSamplerShard(BatchSampler(sampler, 2, False), 2, 1), 1)
    loader = Namespace(batch_sampler=dealt, dataset=None)
    DataPosition().on_epoch_begin(None, Namespace(epoch=2.5), None, train_dataloader=loader)
    assert sampler.epoch == 2
