"""Every command answers --help at once: its arguments are parsed before heavy packages are imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava.published import gone

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("accelerate", "cv2", "datasets", "deepspeed", "fastapi", "gradio", "jinja2", "matplotlib", "onnx"),
    *("openpyxl", "peft", "PIL", "pyarrow", "torch", "transformers", "uvicorn", "webdataset"),
}
GONE = {command.module.replace(".", "/") + ".py" for command in gone.COMMANDS}
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("llava", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text()
)
# One interpreter runs all commands, and heavy imports fail in it. Each command's outcome is a line of JSON
ASK = """
import contextlib, io, json, runpy, sys, traceback
heavy, asked_for = sys.argv.pop().split(), []

class NoHeavyImports:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in heavy:
            asked_for.append(name)
            raise ImportError(f"{name} is imported ahead of the command line")

sys.meta_path.insert(0, NoHeavyImports)
sys.path.insert(0, "scripts")  # as python scripts/NAME.py does
outcomes = {}
for name in sys.argv[1:]:
    asked_for.clear()
    outcome, page = outcomes.setdefault(name, {"status": 0}), io.StringIO()
    sys.argv = [name, "--help"]
    run = runpy.run_path if name.endswith(".py") else runpy.run_module
    try:
        with contextlib.redirect_stdout(page):
            run(name, run_name="__main__")
    except SystemExit as end:
        outcome["status"] = end.code or 0
    except BaseException:
        outcome["status"] = traceback.format_exc()
    outcome |= {"page": page.getvalue(), "heavy": list(asked_for)}
print(json.dumps(outcomes))
"""
ASKED = [command for command in COMMANDS if command not in GONE]


def name_of(file: str) -> str:
    """The command for python: a script's path, or a module after -m."""
    if file.startswith("llava/"):
        return file.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    return file


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict]:
    """Maps a command's name to its exit status, its help page, and the heavy packages that it imported."""
    command = [sys.executable, "-W", "ignore", "-c", ASK, *map(name_of, ASKED), " ".join(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_are_commands():
    assert {"llava/serve/web.py", "llava/train/train_mem.py", "scripts/measure.py"} <= set(COMMANDS)


@pytest.mark.parametrize("file", ASKED)
def test_help_comes_ahead_of_the_heavy_imports(outcomes, file):
    outcome = outcomes[name_of(file)]
    assert outcome["status"] == 0, outcome["status"]
    assert "usage" in outcome["page"].lower()
    assert outcome["heavy"] == []


def test_trainings_help_names_all_flags_of_our_own_and_how_to_see_the_others():
    from dataclasses import fields

    from llava.train.flags import DataArguments, ModelArguments, TrainingFlags, help_page

    page = help_page()
    for kind in (ModelArguments, DataArguments, TrainingFlags):
        for declared in fields(kind):
            assert f"  --{declared.name} " in page
    assert "--help_all" in page
