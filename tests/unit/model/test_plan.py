"""CheckpointPlan: a folder's contents are examined once, and loading reads each of its lists once."""

from collections import Counter
from pathlib import Path

import pytest
import tiny

from llava.errors import UserError
from llava.model import plan as plans
from llava.model.builder import load_pretrained_model
from llava.model.plan import Kind, look_at, plan_checkpoint


@pytest.fixture
def folder(tmp_path):
    return tiny.save_llava(tmp_path / "model")


def test_loading_parses_config_json_and_lists_weights_once(folder, monkeypatch):
    calls = Counter()

    def counted(function):
        def call(path):
            calls[function.__name__, Path(path).name] += 1
            return function(path)

        return call

    for name in ("read_json", "weight_names"):
        monkeypatch.setattr(plans, name, counted(getattr(plans, name)))
    load_pretrained_model(str(folder))
    assert calls == {("read_json", "config.json"): 1, ("weight_names", "model"): 1}


def test_a_plan_is_taken_in_place_of_a_path_and_loading_leaves_it_as_it_is(folder):
    plan = plan_checkpoint(folder)
    before = plan.config.to_dict()
    model = load_pretrained_model(plan)[1]
    model.set_scale_factor(3)
    assert plan.config.to_dict() == before
    assert (plan.kind, plan.sees, plan.model_class) == (Kind.MODEL, True, type(model))
    names = {name for name, _ in model.get_projector().state_dict().items()}
    assert set(plan.projector_weights) == names == set(plan.read_projector())


def test_kinds_are_told_by_files(tmp_path):
    for name, kind in {
        "mm_projector.bin": Kind.PROJECTOR,
        "model.safetensors": Kind.MODEL,
        "adapter_config.json": Kind.ADAPTERS,
    }.items():
        (tmp_path / name).touch()
        assert look_at(tmp_path).kind is kind


def test_a_folder_without_configuration_or_weights_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no config\.json.*\['notes\.txt'\]"):
        plan_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="no weights"):
        plan_checkpoint(tmp_path)
