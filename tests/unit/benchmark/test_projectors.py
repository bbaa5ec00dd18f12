"""The table of projectors: one row for each projector and s, with figures that can be checked by hand."""

import json

import pytest
import torch

from llava.benchmark import projectors
from llava.benchmark.__main__ import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Projectors from a 12x12 grid with 16 channels to a width of 24."""
    for name, value in {"GRID": 12, "VISION_WIDTH": 16, "LLM_WIDTH": 24}.items():
        monkeypatch.setattr(projectors, name, value)


def test_rows_and_files(tmp_path, capsys):
    arguments = ["projectors", "--types", "mlp2x_gelu,visualprism", "--repeats", "1", "--device", "cpu"]
    main([*arguments, "--batch_size", "2", "--output_dir", str(tmp_path)])
    content = json.loads((tmp_path / "projectors.json").read_text())
    rows = [(row["projector"], row["scale_factor"], row["tokens"]) for row in content["rows"]]
    prism = [("visualprism", s, (12 // s) ** 2) for s in (2, 3, 4)]
    assert rows == [("mlp2x_gelu", None, 144), *prism]
    table = (tmp_path / "projectors.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n|") == 2 + 4


def test_figures_are_those_of_an_mlp_worked_out_by_hand():
    (row,) = projectors.measure(["mlp2x_gelu"], [2], 2, 1, "cpu", torch.float32)
    positions = 2 * 144
    assert row.parameters == 16 * 24 + 24 + 24 * 24 + 24
    assert row.gflop == pytest.approx(2 * positions * (16 * 24 + 24 * 24) / 1e9)
    hidden = positions * 24 * 4 / 2**20
    assert 2 * hidden * 0.9 < row.forward_mib < 4 * hidden
    assert row.step_mib > row.forward_mib
    assert row.forward_ms > 0
