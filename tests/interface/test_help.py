"""Every command line answers --help at once: it is parsed ahead of the heavy imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava.published import gone

ROOT = Path(__file__).parents[2]
HEAVY = {"accelerate", "cv2", "fastapi", "gradio", "matplotlib", "onnx", "ray", "torch", "transformers"}
GONE = {command.module.replace(".", "/") + ".py" for command in gone.COMMANDS}
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("llava", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text()
)
ASK = """
import runpy, sys
name, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
sys.path.insert(0, "scripts")  # as python scripts/NAME.py does
run = runpy.run_path if name.endswith(".py") else runpy.run_module
try:
    run(name, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted(sys.modules))
"""


def test_there_are_commands():
    assert {"llava/serve/web.py", "llava/train/train_mem.py", "scripts/measure.py"} <= set(COMMANDS)


@pytest.mark.parametrize("file", [command for command in COMMANDS if command not in GONE])
def test_help_comes_ahead_of_the_heavy_imports(file):
    name = file
    if file.startswith("llava/"):
        name = file.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    done = subprocess.run(
        [sys.executable, "-c", ASK, name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page, _, loaded = done.stdout.rpartition("loaded:")
    assert "usage" in page.lower()
    assert not HEAVY & set(loaded.split())


def test_trainings_help_names_all_flags_of_our_own_and_how_to_see_the_others():
    from dataclasses import fields

    from llava.train.flags import DataArguments, ModelArguments, TrainingFlags, help_page

    page = help_page()
    for kind in (ModelArguments, DataArguments, TrainingFlags):
        for declared in fields(kind):
            assert f"  --{declared.name} " in page
    assert "--help_all" in page
