"""DeepSpeed on two CPU processes: each ZeRO stage equals one process with the same global batch."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import ranks
import torch
from PIL import Image
from safetensors.torch import load_file
from stages import stage_flags

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_projector
from llava.train.arguments import parse

SCRIPTS = Path(__file__).parents[2] / "scripts"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
# A batch of two samples on each of two ranks, or a batch of four in one process
TWO_RANKS, ONE_PROCESS = {"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 4}
# Adam divides by the gradient's size. If the gradient is only rounding, epsilon keeps the update small
COMMON = {"max_steps": 3, "save_steps": 100, "learning_rate": 1e-3, "adam_epsilon": 1e-3}


@pytest.fixture(scope="module")
def offload_config(tmp_path_factory):
    """The shipped file, but with torch's Adam, because DeepSpeed's own takes minutes to compile once."""
    config = json.loads((SCRIPTS / "zero3_offload.json").read_text())
    file = tmp_path_factory.mktemp("config") / "zero3_offload.json"
    file.write_text(json.dumps({**config, "zero_force_ds_cpu_optimizer": False}))
    return file


@pytest.fixture(scope="module")
def one_process(parts, tmp_path_factory):
    """The folders of both stages, trained by one process."""
    folder = tmp_path_factory.mktemp("one_process")
    train(parts, folder, 1, **ONE_PROCESS)
    train(parts, folder, 2, **ONE_PROCESS)
    return folder


def train(parts, folder: Path, stage: int, world_size: int = 1, **changes) -> None:
    """Train a stage into folder / "stage1" or "stage2"; the second starts from the first."""
    if stage == 2:
        changes["pretrain_mm_mlp_adapter"] = folder / "stage1" / "mm_projector.bin"
    argv = stage_flags(parts, folder / f"stage{stage}", stage, **{**COMMON, **changes})
    log = folder / "log"
    assert set(ranks.run(argv, log, world_size)) == {0}, log.read_text()


def assert_close(found: dict, expected: dict) -> None:
    """Compares two states, with running statistics."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)


def assert_same_weights(folder: Path, expected: Path) -> None:
    """Compares the weights of both stages."""
    assert_close(*(read_projector(each / "stage1" / "mm_projector.bin") for each in (folder, expected)))
    assert_close(*(load_file(each / "stage2" / "model.safetensors") for each in (folder, expected)))


def assert_loads_and_answers(folder: Path) -> None:
    tokenizer, model, processor, _ = load_pretrained_model(str(folder))
    pixels = processor(Image.new("RGB", (40, 30), "red"), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[*tokenizer("What?").input_ids, IMAGE_TOKEN_INDEX]])
    assert model.generate(ids, images=pixels, max_new_tokens=3, do_sample=False).shape[0] == 1


@pytest.mark.parametrize("config", [None, "zero2", "zero3", "offload"])
def test_two_ranks_are_one_process(parts, one_process, offload_config, tmp_path, config):
    files = {"zero2": SCRIPTS / "zero2.json", "zero3": SCRIPTS / "zero3.json", "offload": offload_config}
    extra = {"deepspeed": files[config]} if config else {}
    for stage in (1, 2):
        train(parts, tmp_path, stage, world_size=2, **TWO_RANKS, **extra)
    assert_same_weights(tmp_path, one_process)
    assert_loads_and_answers(tmp_path / "stage2")


@pytest.mark.parametrize(
    ("mode", "refused"), [({}, True), ({"tune_mm_mlp_adapter": True}, False), ({"lora_enable": True}, False)]
)
def test_zero_3_that_would_leave_no_model_is_refused(parts, tmp_path, mode, refused):
    """Stage 1 and LoRA gather the weights that they save themselves."""
    config = json.loads((SCRIPTS / "zero3.json").read_text())
    del config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    (tmp_path / "zero3.json").write_text(json.dumps(config))
    argv = stage_flags(parts, tmp_path / "run", 2, deepspeed=tmp_path / "zero3.json", **mode)
    with pytest.raises(UserError, match="stage3_gather_16bit_weights") if refused else nullcontext():
        parse(argv)


@pytest.mark.parametrize("config", [None, "zero3"])
def test_a_rank_of_text_alone_neither_hangs_nor_spoils_the_statistics(parts, tmp_path, config):
    """Samples alternate, so one rank has all images, and the other all samples with only text."""
    text = json.loads((parts / "conversations.json").read_text())[-1]
    mixed = []
    for index in range(4):  # noise, because pictures of one colour have no variance for a batch norm
        pixels = torch.randint(256, (56, 56, 3), generator=torch.Generator().manual_seed(index))
        Image.fromarray(pixels.byte().numpy()).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
        mixed += [{"id": str(index), "image": f"{index}.png", "conversations": turns}, text]
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    common = {**COMMON, "data_path": tmp_path / "mixed.json", "image_folder": tmp_path}
    common["train_sampling_strategy"] = "sequential"
    extra = {"deepspeed": SCRIPTS / f"{config}.json"} if config else {}
    log = tmp_path / "log"
    weights = []
    for name, world_size, changes in (("one", 1, {}), ("two", 2, extra)):
        batch_size = 2 // world_size
        argv = stage_flags(
            parts, tmp_path / name, 2, per_device_train_batch_size=batch_size, **common, **changes
        )
        assert set(ranks.run(argv, log, world_size, timeout=120)) == {0}, log.read_text()
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert_close(*reversed(weights))
