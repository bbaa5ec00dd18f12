"""An option of a projector is declared once; flags, config.json, checks and documentation follow from it."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny

from llava.errors import UserError
from llava.model.builder import load_pretrained_model
from llava.model.compatibility import fixed_by_weights
from llava.model.multimodal_projector import options
from llava.model.multimodal_projector.builder import PROJECTORS, VisionFields, all_options
from llava.model.multimodal_projector.options import ProjectorOptions, declared_options, option
from llava.train.flags import ModelArguments

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "projectors.md"


def test_what_is_read_from_the_files_is_what_they_declare():
    read = {declared.name: declared for declared in declared_options()}
    assert read.keys() == all_options().keys()
    for name, (kind, declared) in all_options().items():
        assert read[name].default == declared.default
        assert read[name].help_text == declared.metadata["help"]
        assert kind in (read[name].kind, read[name].kind | None)
    assert options.registered_types() == list(PROJECTORS)


@pytest.mark.parametrize(
    "line", ["a: bool = option(DEFAULT, 'x')", "a: bool = option(True, name)", "a: list = option(None, 'x')"]
)
def test_a_declaration_that_help_cannot_read_is_refused_with_file_and_line(tmp_path, monkeypatch, line):
    (tmp_path / "odd.py").write_text(f"class Options:\n    {line}\n")
    monkeypatch.setattr(options, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"odd\.py, line 2"):
        declared_options()


def test_two_options_of_one_name_are_refused(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text("class Options:\n    a: bool = option(True, 'x')\n")
    monkeypatch.setattr(options, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"b\.py, line 2.*option a"):
        declared_options()


def test_every_option_is_a_flag_and_a_key_of_config_json():
    flags = {field.name: field for field in dataclasses.fields(ModelArguments)}
    for name, (_, declared) in all_options().items():
        assert flags[name].default is None
        assert declared.metadata["help"].removesuffix(".") in flags[name].metadata["help"]
        assert getattr(VisionFields(), name) == declared.default


def test_weights_fix_the_options_that_say_so_in_a_form_that_compares():
    @dataclasses.dataclass(frozen=True)
    class Some(ProjectorOptions):
        order: str = option("a,b", "Letters.", form=lambda text: sorted(text.split(",")))
        speed: int = option(1, "How fast.", fixes_weights=False)

    fixed = {"mm_projector_norm": False, "mm_projector_input_norm": None, "order": ["a", "b"]}
    assert Some(order="b,a", speed=2).fixed_by_weights() == Some().fixed_by_weights() == fixed
    assert Some.of(VisionFields()) == Some()
    fields = VisionFields(mm_projector_type="visualprism", visualprism_norm="sync_batch")
    plain = VisionFields(mm_projector_type="visualprism", visualprism_paths="local,wavelet,identity")
    assert fixed_by_weights(fields, 24) == fixed_by_weights(plain, 24)
    assert fixed_by_weights(VisionFields(mm_projector_type="mlp2x_gelu"), 24).keys() == {
        "mm_projector_type",
        "mm_vision_select_layer",
        "mm_vision_select_feature",
        "mm_patch_merge_type",
        "mm_projector_norm",
        "mm_projector_input_norm",
    }


def test_options_come_back_from_a_folder_and_absent_keys_have_their_defaults(tmp_path):
    tiny.save_llava(tmp_path / "model", mm_projector_type="visualprism_v2", visualprism_positions=False)
    loaded = load_pretrained_model(str(tmp_path / "model"))[1]
    assert loaded.get_projector().v_positions is None
    file = tmp_path / "model" / "config.json"
    content = json.loads(file.read_text())
    assert content.pop("visualprism_positions") is False
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"missing .*v_positions"):
        load_pretrained_model(str(tmp_path / "model"))


def test_the_documentation_has_the_table_of_options():
    rows = [
        "| flag | types | default | weights are for one value | what |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (_, declared) in all_options().items():
        types = [kind for kind, cls in PROJECTORS.items() if name in cls.Options.__dataclass_fields__]
        types = ["all"] if len(types) == len(PROJECTORS) else types
        default = "–" if declared.default is None else declared.default
        fixed = "yes" if declared.metadata["fixes_weights"] else "no"
        rows.append(
            f"| `--{name}` | {', '.join(types)} | {default} | {fixed} | {declared.metadata['help']} |"
        )
    expected = "\n".join(rows)
    assert expected in DOCUMENTATION.read_text(), f"docs/projectors.md should have\n{expected}"
