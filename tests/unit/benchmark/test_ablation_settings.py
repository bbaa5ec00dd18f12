"""A study's YAML: its settings, what is refused, and the tables at the end."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from scipy import stats

from llava.benchmark.ablation.command import visible_devices
from llava.benchmark.ablation.settings import Row, read_study, runs_of
from llava.benchmark.ablation.tables import as_markdown, half_width, lines_of

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "scripts" / "ablation").glob("*.yaml"))
STUDY = {
    "data": {"folder": "scenes", "num_train": 8, "num_test": 4, "image_size": 112},
    "tower": "tower",
    "reader": {},
    "training": {"epochs": 1, "learning_rate": "1e-3"},
    "seeds": [0, 1],
    "scale_factors": [2, 4],
    "reference": "rival",
    "rows": [
        {"name": "blind", "projector": "none"},
        {"name": "whole", "projector": "linear", "seeds": [0]},
        {"name": "rival", "projector": "tokenpacker"},
        {"name": "any s", "projector": "visualprism", "elastic": True},
        {"name": "one path", "projector": "visualprism", "visualprism_tpqp": False, "scale_factors": [2]},
    ],
    "tables": {"all": {"rows": ["blind", "whole", "rival", "any s", "one path"]}},
}


@pytest.fixture
def write(tmp_path):
    def write_study(**changes) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return path

    return write_study


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_can_be_read(path):
    study = read_study(path)
    assert runs_of(study)
    assert {row.name for row in study.rows} == {name for t in study.tables.values() for name in t.rows}
    for table in study.tables.values():
        rows = [row for row in study.rows if row.name in table.rows]
        assert all(set(table.marks) <= set(row.marks) for row in rows)


def test_runs_are_every_row_at_every_s_with_every_seed_seed_by_seed(write):
    runs = runs_of(read_study(write()))
    first = [
        "blind-seed0",
        "whole-seed0",
        "rival-s2-seed0",
        "rival-s4-seed0",
        "any-s-s2-s4-seed0",
        "one-path-s2-seed0",
    ]
    second = [key.replace("seed0", "seed1") for key in first if not key.startswith("whole")]
    assert [run.key for run in runs] == first + second
    assert runs[-1].row.switches == {"visualprism_tpqp": False}


def test_numbers_that_yaml_takes_for_text_are_numbers(write):
    assert read_study(write()).training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, "unknown seed.*data, tower"),
        ({"seeds": 3}, ": seeds .* 3 "),
        ({"tower": None}, "tower is missing"),
        ({"data": {**STUDY["data"], "num_train": 1.5}}, "num_train.*1.5"),
        (
            {"data": {**STUDY["data"], "score_on": "train"}},
            "score_on.*test.*validation.*'train'",
        ),
        ({"data": {**STUDY["data"], "score_on": "validation"}}, "needs data.num_validation"),
        (
            {"rows": [{"name": "a", "projector": "mystery"}]},
            "row 1: --mm_projector_type 'mystery'",
        ),
        ({"rows": [{"name": "a", "projector": ["linear"]}]}, r"row 1: --mm_projector_type \['linear'\]"),
        ({"rows": [{"name": "a", "projector": "linear", "hkve": False}]}, "row 1: unknown hkve"),
        ({"rows": [{"name": "a", "projector": "visionzip"}]}, "attention.*not cached"),
        ({"rows": [*STUDY["rows"], STUDY["rows"][0]]}, "blind.*twice"),
        ({"tables": {"all": {"rows": ["nobody"]}}}, "do not exist: nobody"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(write, changes, message):
    with pytest.raises(ValueError, match=message):
        read_study(write(**changes))


def test_a_file_that_is_no_study_is_refused(tmp_path):
    (tmp_path / "broken.yaml").write_text("rows: [")
    for name, message in (("absent.yaml", "absent.yaml.*YAML"), ("broken.yaml", "broken.yaml.*YAML")):
        with pytest.raises(ValueError, match=message):
            read_study(tmp_path / name)


def result(name: str, seed: int, scale_factor: int | None, right: dict[str, int], tokens: int = 16) -> dict:
    families = {family: [count, 10] for family, count in right.items()}
    scored = {"scale_factor": scale_factor, "tokens": tokens, "gflop": 0.5, "families": families}
    return {"name": name, "seed": seed, "seconds": 60.0, "parameters": 1, "scores": [scored]}


def test_the_interval_is_students():
    values = [0.5, 0.6, 0.7, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=0.55, scale=stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2)
    assert half_width([0.5]) is None


def test_a_table_has_means_over_families_and_differences_seed_by_seed(write):
    study = read_study(write())
    results = [
        result("blind", 0, None, {"count": 2, "read": 0}, tokens=0),
        result("rival", 0, 2, {"count": 4, "read": 2}),
        result("rival", 1, 2, {"count": 8, "read": 4}),
        result("one path", 1, 2, {"count": 9, "read": 5}),
    ]
    lines = lines_of(study, results)
    assert [line.row.name for line in lines] == ["blind", "rival", "one path"]
    assert lines[1].means == pytest.approx([0.3, 0.6])
    table = as_markdown(study, results)
    half = 100 * half_width([0.3, 0.6])
    assert f"| rival | 16 | 45.0 ± {half:.1f} | – | 60.0 | 30.0 | 0.50 | 1.0 | 2 |" in table
    assert "| one path | 16 | 70.0 | +10.0 | 90.0 | 50.0 |" in table  # seed 1 is compared only with seed 1
    assert "Not run yet: whole, any s." in table


def test_marks_stand_in_columns_of_their_own(write):
    rows = [
        {"name": "rival", "projector": "tokenpacker", "marks": {"HKVE": "yes", "other": "no"}},
        {"name": "blind", "projector": "none"},
    ]
    tables = {"parts": {"rows": ["rival"], "marks": ["HKVE"], "scale_factors": [4]}}
    study = read_study(write(rows=rows, tables=tables))
    results = [result("rival", 0, 4, {"count": 5}), result("rival", 0, 2, {"count": 9})]
    table = as_markdown(study, results)
    assert "| HKVE | tokens |" in table
    assert "| yes | 16 | 50.0 |" in table
    assert "90.0" not in table


def test_every_setting_of_a_row_is_documented():
    assert all(f"{field.name}" in Row.__doc__ for field in dataclasses.fields(Row))


@pytest.mark.parametrize(("reader", "expected"), [({}, ["cpu"] * 3), ({"path": "language_model"}, ["cpu"])])
def test_without_a_gpu_threads_share_out_the_runs_of_a_small_reader_alone(
    write, monkeypatch, reader, expected
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert visible_devices(read_study(write(reader=reader))) == expected
