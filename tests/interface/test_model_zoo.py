"""docs/model_zoo.md: the variables of each row exist in the scripts, and give valid command lines."""

import os
import re
import subprocess
from itertools import product
from pathlib import Path

import pytest

from llava.conversation import conv_templates
from llava.train.arguments import parse

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
SCRIPTS = {1: ROOT / "scripts/v1_5/pretrain.sh", 2: ROOT / "scripts/v1_5/finetune.sh"}
GLOBAL_BATCH, GPUS = {1: 256, 2: 128}, 8


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without the head of the table."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def variables(*cells: str) -> dict[str, str]:
    return dict(re.findall(r"([A-Z_]+)=([^\s`]+)", " ".join(cells)))


LANGUAGE_MODELS = {
    name: {1: variables(both, first), 2: variables(both, second)}
    for name, both, first, second in table("Language models")
}
TOWERS = {
    name: (variables(cell), int(pixels), int(patch)) for name, cell, pixels, patch in table("Vision towers")
}
BUDGETS = {int(tokens): variables(cell) for tokens, cell in table("Budgets")}
FIRST = next(iter(LANGUAGE_MODELS))


def flags(script: Path, tmp_path: Path, chosen: dict[str, str]) -> list[str]:
    """The flags that a script passes to train_mem.py on a machine without a GPU."""
    stubs = {"python": '#!/bin/sh\nprintf "%s\\n" "$@"\n', "nvidia-smi": "#!/bin/sh\n"}
    for name, text in stubs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHON": "python",
        **chosen,
    }
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("train_mem.py\n")[1].splitlines()


@pytest.mark.parametrize("stage", SCRIPTS)
def test_every_variable_is_one_that_the_scripts_explain(stage):
    known = subprocess.run(
        ["bash", SCRIPTS[stage], "--help"], capture_output=True, text=True, check=True
    ).stdout
    named = {name for row in LANGUAGE_MODELS.values() for name in row[stage]}
    named |= {name for cells in (*(row[0] for row in TOWERS.values()), *BUDGETS.values()) for name in cells}
    lines = [
        line for line in re.findall(r"^.*bash scripts.*$", PAGE, re.MULTILINE) if SCRIPTS[stage].name in line
    ]
    exported = re.findall(r"^export .*$", PAGE, re.MULTILINE)
    assert lines
    named |= set(variables(*lines)) | (
        set(variables(*exported)) - ({"PRETRAIN_DIR"} if stage == 1 else set())
    )
    assert {name for name in named if not re.search(rf"\b{name}\b", known)} == set()


COMBINATIONS = [(name, next(iter(TOWERS)), 144) for name in LANGUAGE_MODELS]
COMBINATIONS += [row for row in product([FIRST], TOWERS, BUDGETS) if row not in COMBINATIONS]


@pytest.mark.parametrize(("language_model", "tower", "tokens"), COMBINATIONS)
def test_a_combination_gives_two_command_lines_that_train_mem_takes(language_model, tower, tokens, tmp_path):
    chosen, pixels, patch = TOWERS[tower]
    for stage, script in SCRIPTS.items():
        row = LANGUAGE_MODELS[language_model][stage]
        model, _, training = parse(flags(script, tmp_path, row | chosen | BUDGETS[tokens]))
        assert model.model_name_or_path == row["MODEL"]
        assert model.vision_tower == chosen["VISION_TOWER"]
        assert (model.mm_vision_image_size or pixels) == pixels
        assert model.version == row.get("VERSION", "plain")
        assert model.version in conv_templates
        grid = pixels // patch
        assert pixels == grid * patch == 24 * patch
        assert (grid // model.scale_factor) ** 2 == tokens
        assert grid % model.scale_factor == 0
        accumulated = training.per_device_train_batch_size * training.gradient_accumulation_steps
        assert accumulated == GLOBAL_BATCH[stage]  # for one device


def test_memory_is_what_its_formulas_give():
    rows = table("Memory")
    assert [row[0] for row in rows] == list(LANGUAGE_MODELS)
    for _, billions, width, layers, stage_2, stage_1, kept in rows:
        assert float(stage_2) == pytest.approx(16 * float(billions) / GPUS, abs=0.06)
        assert float(stage_1) == pytest.approx(2 * float(billions), abs=0.06)
        assert float(kept) == pytest.approx(2 * int(layers) * 2048 * int(width) / 1e9, abs=0.006)
