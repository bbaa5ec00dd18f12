"""The fit of a projector's last map before the first step: one rank, two ranks, and after a restart."""

import pytest
import ranks
import torch
from ranks import KillAt
from safetensors.torch import load_file
from stages import ENTRY, assert_same_run, stage_flags

from llava.errors import UserError
from llava.model.checkpoint import read_projector
from llava.model.multimodal_projector.builder import PROJECTORS
from llava.train.arguments import parse
from llava.train.train import train
from llava.train.warm_start import GAIN

WARM = {"mm_projector_warm_start": 12}
ENDS_OTHERWISE = {"identity", "ldpv2"}


def warmed(parts, output_dir, **changes) -> dict[str, torch.Tensor]:
    """The projector of a run whose steps do not change any weight."""
    train(stage_flags(parts, output_dir, 1, max_steps=1, learning_rate=0.0, **WARM, **changes))
    return read_projector(output_dir / "mm_projector.bin")


@pytest.fixture(scope="module")
def one_rank(parts, tmp_path_factory):
    return warmed(parts, tmp_path_factory.mktemp("one_rank"))


def test_the_last_map_alone_is_set_and_held_out_pictures_are_explained(parts, tmp_path, one_rank, caplog):
    train(stage_flags(parts, tmp_path / "cold", 1, max_steps=1, learning_rate=0.0))
    cold = read_projector(tmp_path / "cold" / "mm_projector.bin")
    changed = {name for name in cold if not torch.equal(cold[name], one_rank[name])}
    batches = {name for name in changed if "running" in name or "num_batches" in name}
    assert {name.split(".")[-1] for name in changed - batches} == {"weight", "bias"}
    assert len({name.rpartition(".")[0] for name in changed - batches}) == 1
    with caplog.at_level("INFO"):
        warmed(parts, tmp_path / "warm")
    assert "12 pictures" in caplog.text


@pytest.mark.parametrize("name", ["visualprism_v2", "linear"])
def test_an_output_norm_keeps_the_fits_directions_and_takes_its_size(parts, tmp_path, name):
    bare = warmed(parts, tmp_path / "bare", mm_projector_type=name)
    normed = warmed(parts, tmp_path / "normed", mm_projector_type=name, mm_projector_norm=True)
    scale, gain = (normed.pop(f"output_norm.{part}") for part in ("scale", "weight"))
    assert normed.keys() == bare.keys()
    for key in bare:
        assert torch.equal(normed[key], bare[key]), key
    assert torch.equal(gain, torch.ones_like(gain))
    words = load_file(parts / "language_model" / "model.safetensors")["model.embed_tokens.weight"]
    size = words.square().mean().sqrt()
    assert not torch.isclose(scale, size, rtol=0.01)
    assert 0.1 * size < scale < GAIN * size  # the targets are means of words, times GAIN


def test_two_ranks_are_one(parts, tmp_path, one_rank):
    argv = stage_flags(parts, tmp_path / "run", 1, max_steps=1, learning_rate=0.0, **WARM)
    log = tmp_path / "log"
    assert ranks.run(argv, log, world_size=2) == [0, 0], log.read_text()
    found = read_projector(tmp_path / "run" / "mm_projector.bin")
    last = max((name for name in one_rank if name.startswith("mlp.") or ".mlp." in name), key=len)
    torch.testing.assert_close(found[last], one_rank[last], atol=1e-3, rtol=1e-2)


def test_a_run_killed_ahead_of_its_first_checkpoint_starts_so_again(parts, tmp_path):
    log = tmp_path / "log"
    whole, cut = (stage_flags(parts, tmp_path / name, 1, **WARM) for name in ("whole", "cut"))
    assert ranks.run(whole, log) == [0], log.read_text()
    assert ranks.run(cut, log, prepare=KillAt("torch.optim", "AdamW.step", call=2)) == [-9], log.read_text()
    assert ranks.run(cut, log, prepare=KillAt("torch.optim", "AdamW.step", call=4)) == [-9], log.read_text()
    assert ranks.run(cut, log) == [0], log.read_text()
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert (
        log.read_text().count("R2 on held-out pictures") == 3
    )  # the fit is not repeated if there is a checkpoint


def test_under_zero_3_the_last_map_is_set_as_well(parts, tmp_path, one_rank):
    argv = stage_flags(
        parts, tmp_path / "run", 1, max_steps=1, learning_rate=0.0, **WARM, deepspeed="scripts/zero3.json"
    )
    log = tmp_path / "log"
    assert ranks.run(argv, log, world_size=2) == [0, 0], log.read_text()
    found = read_projector(tmp_path / "run" / "mm_projector.bin")
    last = max((name for name in one_rank if name.startswith("mlp.") or ".mlp." in name), key=len)
    torch.testing.assert_close(found[last].float(), one_rank[last], atol=1e-2, rtol=5e-2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"freeze_mm_mlp_adapter": True}, "--freeze_mm_mlp_adapter"),
        ({"pretrain_mm_mlp_adapter": ENTRY}, str(ENTRY)),
    ],
)
def test_a_projector_that_was_trained_or_does_not_learn_is_refused(parts, tmp_path, changes, named):
    with pytest.raises(UserError, match=f"--mm_projector_warm_start.*{named}"):
        parse(stage_flags(parts, tmp_path, 2, **WARM, **changes))


@pytest.mark.parametrize("name", sorted(PROJECTORS))
def test_each_projector_with_a_last_linear_map_takes_it(parts, tmp_path, name):
    options = {"num_visual_tokens": 2} if name in ("prumerge", "visionzip") else {}
    argv = stage_flags(parts, tmp_path, 1, max_steps=1, mm_projector_type=name, **WARM, **options)
    if name in ENDS_OTHERWISE:
        with pytest.raises(SystemExit, match="--mm_projector_warm_start"):
            train(argv)
    else:
        train(argv)
        assert (tmp_path / "mm_projector.bin").is_file()
