"""Projectors that the pages add to the code, by a file and a line each, live in a copy of the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIFE = """
import json, sys
from pathlib import Path
import pytest, torch
import llava
from modes import load, logits, run, trainer_of
from llava.benchmark.ablation.settings import _row, read_study
from llava.errors import UserError
from llava.train.flags import help_page
from llava.train.train import train
from training_parts import flags

clone, parts, work = map(Path, sys.argv[1:])
assert Path(llava.__file__).is_relative_to(clone), llava.__file__
own = {"mm_projector_type": "maxpool", "maxpool_bias": False, "maxpool_scale": 2.0}
train(flags(parts, work / "stage1", "captions.json", tune_mm_mlp_adapter=True, **own))
start = {"pretrain_mm_mlp_adapter": work / "stage1" / "mm_projector.bin"}
model = run(parts, work / "stage2", **start, **own)
assert model.get_projector().proj.bias is None and model.get_projector().scale == 2.0
saved = json.loads((work / "stage2" / "config.json").read_text())
assert (saved["mm_projector_type"], saved["maxpool_bias"], saved["maxpool_scale"]) == ("maxpool", False, 2.0)
torch.testing.assert_close(logits(load(work / "stage2")), logits(model))
whole = {"model_name_or_path": work / "stage2", "mm_projector_type": None, "vision_tower": None}
assert trainer_of(parts, work / "more", **whole, maxpool_scale=3.0).model.get_projector().scale == 3.0
resumed = trainer_of(parts, work / "resumed", **whole, max_steps=1)
assert resumed.model.config.maxpool_bias is False
with pytest.raises(UserError, match="--maxpool_bias True"):
    trainer_of(parts, work / "refused", **whole, maxpool_bias=True)
with pytest.raises(UserError, match="--visualprism_hkve .*no effect.*--maxpool_bias, --maxpool_scale"):
    trainer_of(parts, work / "foreign", **own, visualprism_hkve=True)
_row(Path("study.yaml"), 0, {"name": "a", "projector": "maxpool", "maxpool_scale": 0.5})
with pytest.raises(UserError, match="unknown maxpool_scale"):
    _row(Path("study.yaml"), 0, {"name": "a", "projector": "avgpool", "maxpool_scale": 0.5})
assert {"maxpool,", "meanmax,", "--maxpool_bias", "--maxpool_scale"} <= set(help_page().split())
assert read_study(clone / "study.yaml").rows[0].projector == "meanmax"
line_up = "tests/unit/model/test_lineup.py"
sys.exit(pytest.main([line_up, "-v", "-n", "0", "-k", "maxpool or meanmax", "-p", "no:cacheprovider"]))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The package and its tests, with the projectors of docs/projectors.md and of the tutorial in them."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("llava", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    text = (ROOT / "docs" / "projectors.md").read_text()
    module, line = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    name, kind = re.fullmatch(r'PROJECTORS\["(\w+)"\] = (\w+)\n', line).groups()
    projectors = folder / "llava" / "model" / "multimodal_projector"
    (projectors / f"{name}.py").write_text(module)
    builder = projectors / "builder.py"
    listed = builder.read_text().replace(
        '    "linear": LinearProjector,\n', f'    "linear": LinearProjector,\n    "{name}": {kind},\n'
    )
    imported = f"from llava.model.multimodal_projector.{name} import {kind}\n"
    builder.write_text(
        listed.replace(
            "from llava.model.multimodal_projector.mlp",
            f"{imported}from llava.model.multimodal_projector.mlp",
            1,
        )
    )
    add_by_tutorial(projectors)
    return folder


def add_by_tutorial(projectors: Path) -> None:
    """Save the tutorial's file and change builder.py as it says: a new line goes above the next old one."""
    text = (ROOT / "docs" / "tutorials" / "own_projector.md").read_text()
    name = re.search(r"Save this as `llava/model/multimodal_projector/(\w+\.py)`", text)[1]
    (projectors / name).write_text(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1])
    builder, new = (projectors / "builder.py").read_text(), []
    for line in re.search(r"```diff\n(.*?)```", text, flags=re.DOTALL)[1].splitlines():
        if line.startswith("+"):
            new.append(line[1:])
        elif line.startswith(" ") and new:
            assert builder.count(line[1:] + "\n") == 1, line
            builder = builder.replace(line[1:] + "\n", "\n".join([*new, line[1:], ""]))
            new = []
    (projectors / "builder.py").write_text(builder)
    study = re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[1]
    (projectors.parents[2] / "study.yaml").write_text(study)


def test_it_trains_saves_goes_on_loads_and_is_in_help_and_the_line_up(clone, parts, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(clone), *(f"{clone}/tests/{part}" for part in ("", "e2e"))]),
    }
    done = subprocess.run(
        [sys.executable, "-c", LIFE, *map(str, (clone, parts, tmp_path))],
        env=environment,
        capture_output=True,
        text=True,
        cwd=clone,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d passed", done.stdout), done.stdout
    for name in ("maxpool", "meanmax"):
        passed = rf"test_one_module_serves_every_scale_and_grid\[{name}\] PASSED"
        assert re.search(passed, done.stdout), done.stdout
