"""A study from drawn scenes to its tables, with a tiny tower; finished work is not repeated."""

import json

import pytest
import tiny
import torch
import yaml
from messages import assert_names
from transformers import Dinov2Config, Dinov2Model

from llava.benchmark.__main__ import main
from llava.benchmark.ablation import features, study
from llava.benchmark.ablation.settings import read_study, runs_of
from llava.mm_utils import load_image
from llava.model.multimodal_encoder.builder import (
    build_vision_tower,
    load_image_processor,
    load_vision_weights,
)
from llava.model.multimodal_projector.builder import VisionFields

SIZE = 112  # 8x8 patches


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A study of 12 scenes."""
    folder = tmp_path_factory.mktemp("ablation")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "mlp_ratio": 2, "num_hidden_layers": 6}
    Dinov2Model(Dinov2Config(**shape, image_size=SIZE, patch_size=14)).save_pretrained(folder / "tower")
    tiny.image_processor(SIZE).save_pretrained(folder / "tower")
    content = {
        "data": {"folder": str(folder / "data"), "num_train": 8, "num_test": 4, "image_size": SIZE},
        "tower": str(folder / "tower"),
        "reader": {"width": 16, "num_heads": 2, "num_hops": 1},
        "training": {"epochs": 1, "batch_size": 4},
        "seeds": [0],
        "scale_factors": [2],
        "rows": [
            {"name": "blind", "projector": "none"},
            {"name": "ours", "projector": "visualprism_v2"},
            {"name": "theirs", "projector": "tokenpacker"},
        ],
        "tables": {"all": {"rows": ["blind", "ours", "theirs"]}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(config, output_dir, *flags: str) -> int:
    flags = ("--config", str(config), "--output_dir", str(output_dir), "--devices", *(flags or ("cpu",)))
    return main(["ablation", *flags])


def test_a_study_ends_in_its_tables_and_goes_on_where_it_stopped(config, tmp_path, capsys, monkeypatch):
    assert command(config, tmp_path) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "results.md").read_text() in table
    for name, tokens in (("blind", 0), ("ours", 16), ("theirs", 16)):
        assert f"| {name} | {tokens} |" in table
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [result["name"] for result in results] == ["blind", "ours", "theirs"]
    (tmp_path / "runs" / "ours-s2-seed0.json").unlink()
    done = []
    run_once = study.run_once
    monkeypatch.setattr(study, "run_once", lambda run, *rest: done.append(run.key) or run_once(run, *rest))
    monkeypatch.setattr(features, "_compute", None)  # the hidden states are already stored
    assert command(config, tmp_path) == 0
    assert done == ["ours-s2-seed0"]
    changed = yaml.safe_load(config.read_text())
    changed["training"]["epochs"] = 2
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(changed))
    assert command(other, tmp_path) == 0
    assert len(done) == 4  # with other settings, every run is repeated


def test_one_result_is_the_same_alone_and_among_two_processes(config, tmp_path):
    for folder, devices in (("one", "cpu"), ("two", "cpu,cpu")):
        assert command(config, tmp_path / folder, devices) == 0
    one, two = (
        json.loads((tmp_path / folder / "results.json").read_text())["results"] for folder in ("one", "two")
    )
    assert [r["scores"] for r in one] == [r["scores"] for r in two]


def test_a_run_that_fails_is_named_after_all_others_are_done(config, tmp_path, capsys, monkeypatch):
    run_once = study.run_once

    def fails(run, *rest):
        if run.row.name == "ours":
            raise RuntimeError("out of memory\nand more")
        return run_once(run, *rest)

    monkeypatch.setattr(study, "run_once", fails)
    assert command(config, tmp_path) == 1
    assert_names(capsys.readouterr().err, "1 of 3", "ours-s2-seed0: out of memory")
    assert (tmp_path / "runs" / "theirs-s2-seed0.json").exists()
    page = tmp_path / "page.md"
    page.write_text("<!-- ablation_study -->\n<!-- end ablation_study -->\n")
    assert command(config, tmp_path, "cpu", "--report_only", "--docs", str(page)) == 0
    tables = capsys.readouterr().out
    assert "Not run yet: ours." in tables
    filled = page.read_text()
    assert tables.strip() in filled
    page.write_text("<!-- ablation_study -->\n| old |\n<!-- end ablation_study -->\n")
    assert main(["ablation", "--docs", str(page)]) == 0  # from the file of results alone
    assert page.read_text() == filled


def test_rates_are_chosen_first_and_the_rows_run_at_them(config, tmp_path, capsys, monkeypatch):
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"num_validation": 2}
    content["rates"] = [1e-4, 1e-3]
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(content))
    run_once, done = study.run_once, []

    def watched(run, recipe, reader, splits, *rest):
        done.append((run.key, recipe.projector_learning_rate, [len(split) for split in splits]))
        result = run_once(run, recipe, reader, splits, *rest)
        if run.row.name == "ours at 0.0001":  # the best, whatever it learnt
            for scored in result["scores"]:
                scored["families"] = {name: [asked, asked] for name, (_, asked) in scored["families"].items()}
        return result

    monkeypatch.setattr(study, "run_once", watched)
    assert command(path, tmp_path) == 0
    assert [key for key, *_ in done[:4]] == [
        f"{name}-at-{rate}-s2-seed0" for name in ("ours", "theirs") for rate in ("0-0001", "0-001")
    ]
    assert [rate for _, rate, _ in done[:4]] == [1e-4, 1e-3] * 2
    assert {tuple(sizes) for *_, sizes in done[:4]} == {(6, 2)}  # on the scenes left out of training
    assert [(key, sizes) for key, _, sizes in done[4:]] == [
        ("blind-seed0", [6, 4]),
        ("ours-s2-seed0", [6, 4]),
        ("theirs-s2-seed0", [6, 4]),
    ]
    assert done[5][1] == 1e-4
    tables = capsys.readouterr().out
    assert "| ours | 0.0001 | 16 | 100.0 |" in tables
    assert tables.count("| ours | 0.0001 | 16 |") == 2
    number = len(done)
    assert command(path, tmp_path) == 0
    assert len(done) == number


def test_neither_a_study_nor_a_page_is_refused(capsys):
    assert main(["ablation"]) == 1
    assert_names(capsys.readouterr().err, "--config", "--docs")


def test_states_are_those_of_the_tower(config, tmp_path):
    content = read_study(config)
    study.prepare(content, tmp_path, "cpu")
    states = study.shared_states(content, tmp_path, "cpu")
    picture = sorted((content.data.folder / "train" / "images").iterdir())[0]
    pixels = load_image_processor(str(content.tower), SIZE)(load_image(str(picture)), return_tensors="pt")
    fields = VisionFields(mm_vision_tower=str(content.tower), mm_vision_image_size=SIZE)
    tower = build_vision_tower(fields, needs_levels=True)
    load_vision_weights(tower, str(content.tower))
    with torch.inference_mode():
        expected = tower(pixels["pixel_values"])
    given = states.features(torch.tensor([0]), VisionFields())
    for ours, theirs in zip(given[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.05, rtol=0.05)
    fewer = states.features(torch.tensor([0]), VisionFields(mm_vision_levels=[-2]))
    assert torch.equal(fewer.levels, fewer.selected)


def test_states_of_an_interrupted_run_are_made_again(config, tmp_path):
    content = read_study(config)
    study.prepare(content, tmp_path, "cpu")
    whole = study.shared_states(content, tmp_path, "cpu").values.clone()
    (tmp_path / "states" / "states.json").unlink()
    (tmp_path / "states" / "states.bfloat16").write_bytes(b"")
    assert torch.equal(study.shared_states(content, tmp_path, "cpu").values, whole)


def test_runs_have_names_of_their_own(config):
    keys = [run.key for run in runs_of(read_study(config))]
    assert len(set(keys)) == len(keys) == 3
