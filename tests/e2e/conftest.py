"""The parts from which training starts, made once. End-to-end tests are slow unless they are marked fast."""

import functools
from pathlib import Path

import pytest
import ranks
import tiny
from modes import run
from stages import stage_flags
from training_parts import flags, save_parts

from llava.train.train import train


def pytest_collection_modifyitems(items):
    """Marks the tests of this folder; pytest passes all tests that it collected."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("fast"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def parts(tmp_path_factory, bpe_tokenizer):
    """A language model, a tower, pictures and records, as a user has them before training."""
    return save_parts(tmp_path_factory.mktemp("parts"), bpe_tokenizer)


@pytest.fixture(scope="session")
def qwen(parts, bpe_tokenizer):
    """A language model whose attention has biases."""
    folder = parts / "qwen2"
    tiny.save_language_model(folder, "qwen2")
    bpe_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stage1(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes") / "stage1"
    train(flags(parts, folder, "captions.json", tune_mm_mlp_adapter=True))
    return folder


@pytest.fixture(scope="session")
def whole(parts, stage1):
    """The folder of stage 2: a whole multimodal model."""
    folder = stage1.parent / "stage2"
    run(parts, folder, pretrain_mm_mlp_adapter=stage1 / "mm_projector.bin")
    return folder


@pytest.fixture(scope="session")
def uninterrupted(parts, tmp_path_factory):
    """Maps a stage, a number of ranks and changed flags to the folder of a run without interruption."""

    @functools.cache
    def folder_of(stage: int, world_size: int = 1, **changes) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        argv = stage_flags(parts, folder / "run", stage, **changes)
        assert set(ranks.run(argv, folder / "log", world_size)) == {0}, (folder / "log").read_text()
        return folder / "run"

    return folder_of


@pytest.fixture(scope="session", autouse=True)
def own_pages_files(tmp_path_factory):
    """Gives each process its own folder for gradio's pictures; by default, all servers share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield
