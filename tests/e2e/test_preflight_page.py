"""bash scripts/preflight.sh with tiny parts: checks in their processes, with real steps; and the page."""

import json
import os
import subprocess
import sys
from pathlib import Path

from llava.benchmark.preflight.checks import CHECKS

ROOT = Path(__file__).parents[2]


def test_a_preflight_forecasts_a_run_and_leaves_nothing_of_it(parts, tmp_path):
    variables = {
        **{"MODEL": parts / "language_model", "VISION_TOWER": parts / "tower", "VERSION": "qwen_2"},
        **{"DATA_PATH": parts / "conversations.json", "IMAGE_FOLDER": parts / "images"},
        **{"GLOBAL_BATCH_SIZE": 2, "BATCH_SIZE": 1, "NUM_WORKERS": 0, "MAX_STEPS": 1000, "RUN_NAME": "tiny"},
        **{"MODEL_MAX_LENGTH": 256, "SAVE_STEPS": 100, "PYTHON": sys.executable, "HF_HUB_OFFLINE": 1},
    }
    skipped = [
        name for name in CHECKS if name not in ("machine", "memory", "steps")
    ]  # each check is a process
    done = subprocess.run(
        [
            "bash",
            ROOT / "scripts/preflight.sh",
            "--skip",
            *skipped,
            "--",
            "--mm_projector_type",
            "visualprism",
        ],
        cwd=tmp_path,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "playground/preflight/preflight.json").read_text())["checks"]
    assert list(results) == ["machine", "memory", "steps"]
    problems = {name for name, outcome in results.items() if "problem" in outcome}
    assert problems == {"memory"}, done.stdout  # the budget is for a GPU, but there is none
    steps = results["steps"]["figures"]
    assert steps["max_steps"] == 1000
    assert steps["samples_a_step"] == 2
    assert len(steps["seconds"]) == 4
    assert "1 problem(s) found:\n\n- **memory**: this machine has no GPU" in done.stdout
    assert "1,000 steps will take **" in done.stdout
    assert done.stdout.strip() == (tmp_path / "playground/preflight/preflight.md").read_text().strip()
    assert [path.name for path in (tmp_path / "playground").iterdir()] == ["preflight"]
