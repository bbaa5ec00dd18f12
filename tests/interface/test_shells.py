"""Every shell script is valid, stops at errors, has no path of one machine, runs, and has a --help."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from messages import assert_names

ROOT = Path(__file__).parents[2]
SHELLS = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").rglob("*.sh"))]
SOURCED = {
    f"scripts/{name}.sh"
    for name in ("common", "environment", "help", "launch", "parts", "python", "v1_5/eval/evaluate")
}
STRICT = "set -euo pipefail"
MACHINE_PATH = re.compile(
    r"(?<![\w.}$*/])/(home|Users|root|data|mnt|opt|tmp|srv|var|usr|work\w*|scratch|etc)\b"
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_lines(path: Path) -> list[str]:
    return [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    ]


def test_shells_parse():
    for path in SHELLS:
        parsed = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        assert parsed.returncode == 0, parsed.stderr


def test_shells_stop_at_the_first_error():
    for path in SHELLS:
        first = code_lines(path)[0]
        sourced = re.search(r"[\w./]+\.sh", first)
        strict = path if not first.startswith("source ") else path.parent / sourced.group().lstrip("/")
        assert STRICT in code_lines(strict)[0], name(path)


def test_shells_name_no_path_of_one_machine():
    for path in SHELLS:
        assert [line for line in code_lines(path) if MACHINE_PATH.search(line)] == [], name(path)


def test_shells_can_be_run():
    for path in SHELLS:
        assert os.access(path, os.X_OK), f"chmod +x {name(path)}"
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# "), name(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in SHELLS if p.suffix == ".sh" and name(p) not in SOURCED], ids=name
)
def test_shell_answers_help_without_doing_anything(path, tmp_path):
    asked = subprocess.run(["bash", path, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert len(asked.stdout.splitlines()) > 3
    assert list(tmp_path.iterdir()) == []


# ---- environment.sh, with a python that only records its commands ----

STUB = """#!/bin/sh
case "$*" in
  *version_info*) echo "$VERSION"; [ "$VERSION" != 3.8 ] ;;
  *sys.prefix*) echo "$HOME" ;;
  *"import importlib.metadata as m, torch"*) exit 1 ;;
  *) echo "$*" >> "$HOME/log"; [ ! -e "$HOME/offline" ] ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with a pyproject.toml, a stub python in an active environment, and its recorded commands."""
    (tmp_path / "bin").mkdir()
    for command in ("python", "python3.8"):
        (tmp_path / "bin" / command).write_text(STUB)
        (tmp_path / "bin" / command).chmod(0o755)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def source_environment(checkout: Path, version: str = "3.12", **variables):
    """Source environment.sh in the folder; returns (the finished process, python's commands)."""
    environment = {
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        "HOME": str(checkout),
        "VERSION": version,
    }
    done = subprocess.run(
        ["bash", "-c", f"source {ROOT}/scripts/environment.sh dev"],
        cwd=checkout,
        env=environment | {"VIRTUAL_ENV": "active"} | variables,
        capture_output=True,
        text=True,
    )
    log = checkout / "log"
    asked = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return done, asked


INSTALLED = ["-m pip install torch==2.13.0", "-m pip install --editable .[dev]"]


@pytest.mark.slow
def test_environment_installs_torch_first_then_everything_once(checkout):
    assert source_environment(checkout)[1] == INSTALLED
    assert source_environment(checkout)[1] == []


@pytest.mark.slow
def test_environment_installs_again_when_the_requirements_change(checkout):
    source_environment(checkout)
    (checkout / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert source_environment(checkout)[1] == INSTALLED


@pytest.mark.slow
def test_environment_resumes_an_interrupted_installation(checkout):
    (checkout / "offline").touch()
    done, asked = source_environment(checkout)
    assert done.returncode != 0
    assert asked == INSTALLED[:1]
    (checkout / "offline").unlink()
    assert source_environment(checkout)[1] == INSTALLED


@pytest.mark.slow
def test_environment_refuses_an_old_python_and_says_what_to_do(checkout):
    done, asked = source_environment(checkout, version="3.8", VIRTUAL_ENV="", PYTHON="python3.8")
    assert done.returncode != 0
    assert_names(done.stderr, "python3.8 is 3.8", "3.10 or newer", "PYTHON=")
    assert asked == []


@pytest.mark.slow
def test_environment_leaves_its_own_python_to_the_scripts_it_starts(checkout):
    """PYTHON names the interpreter that makes .venv; it does not have the packages."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout / "bin" / "python", checkout / ".venv" / "bin" / "python")
    (checkout / ".venv" / "bin" / "activate").write_text("VIRTUAL_ENV=$PWD/.venv\n")
    done = subprocess.run(
        ["bash", "-c", f"PYTHON=python3.8; export PYTHON; source {ROOT}/scripts/environment.sh dev; env"],
        cwd=checkout,
        env={"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HOME": str(checkout), "VERSION": "3.12"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "PYTHON=python" in done.stdout.splitlines()


# ---- environment.sh after unbundle.sh has restored a bundle ----


@pytest.fixture
def offline(checkout):
    """The folder with the wheels of a bundle for Python 3.12, with torch; it also records variables."""
    wheels = checkout / "playground" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "llava-0a1b2c3d.sha256").write_text("# Python 3.12, manylinux_2_28_x86_64, extras dev\n")
    (wheels / "torch-2.13.0-py3-none-any.whl").touch()
    note = STUB.replace('echo "$*" >>', 'echo "$* $PIP_NO_INDEX $PIP_FIND_LINKS $HF_HUB_OFFLINE" >>')
    note = note.replace("  *) echo", '  *"-m venv"*) echo "$*" >> "$HOME/log" ;;\n  *) echo')
    for command in ("python", "python3"):
        (checkout / "bin" / command).write_text(note)
        (checkout / "bin" / command).chmod(0o755)
    return checkout


@pytest.mark.slow
def test_environment_installs_from_a_bundle_and_from_nowhere_else(offline):
    done, asked = source_environment(offline)
    assert done.returncode == 0, done.stderr
    assert asked == [f"{line} 1 playground/wheels 1" for line in INSTALLED]


@pytest.mark.slow
def test_environment_refuses_a_bundle_for_another_python(offline):
    done, asked = source_environment(offline, version="3.11")
    assert done.returncode != 0
    assert_names(done.stderr, "playground/wheels", "Python 3.12", "python is 3.11", "PYTHON=")
    assert asked == []


@pytest.mark.slow
@pytest.mark.parametrize("has_torch", [True, False])
def test_environment_shares_the_machines_packages_where_a_bundle_was_packed_for_them(offline, has_torch):
    if not has_torch:
        (offline / "playground" / "wheels" / "torch-2.13.0-py3-none-any.whl").unlink()
    _, asked = source_environment(offline, VIRTUAL_ENV="")
    assert asked == ["-m venv .venv" if has_torch else "-m venv --system-site-packages .venv"]


@pytest.mark.slow
def test_environment_says_what_to_do_where_neither_bundle_nor_python_has_torch(offline):
    (offline / "playground" / "wheels" / "torch-2.13.0-py3-none-any.whl").unlink()
    done, asked = source_environment(offline)
    assert done.returncode != 0
    assert_names(done.stderr, "playground/wheels", "torch", "activate an environment")
    assert asked == []


# ---- test.sh --oldest, with a python that only records its commands ----

OLDEST = """#!/bin/sh
case "$*" in
  *--dry-run*) [ ! -e "$HOME/offline" ] ;;
  *import\\ json*) echo transformers==5.3.0; echo huggingface-hub==1.9 ;;
  *) echo "$*${PYTHONPATH:+ with $PYTHONPATH}" >> "$HOME/log" ;;
esac
"""


def run_oldest(checkout: Path, **variables) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run the script; returns (the finished process, python's commands)."""
    for folder in ("scripts", "tests"):
        (checkout / folder).mkdir(exist_ok=True)
    for script in ("help.sh", "test.sh"):
        shutil.copy(ROOT / "scripts" / script, checkout / "scripts")
    (checkout / "tests" / "test_one.py").write_text("@pytest.mark.transformers")
    (checkout / "tests" / "test_two.py").write_text("")
    (checkout / "pyproject.toml").write_text('dependencies = [\n    "transformers>=5.3,<6",\n]\n')
    (checkout / "bin" / "python").write_text(OLDEST)
    system = {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HOME": str(checkout), "INSTALL": "0"}
    done = subprocess.run(
        ["bash", checkout / "scripts" / "test.sh", "--oldest", "-x"],
        env=system | variables,
        capture_output=True,
        text=True,
    )
    log = checkout / "log"
    return done, log.read_text().splitlines() if log.exists() else []


def test_the_oldest_transformers_is_the_one_of_pyproject_and_comes_ahead_of_the_installed_one(checkout):
    done, asked = run_oldest(checkout)
    assert done.returncode == 0, done.stderr
    folder = "playground/oldest/5.3"
    assert asked[0] == (
        f"-m pip install --quiet --no-deps --target {folder}.tmp transformers==5.3.0 huggingface-hub==1.9"
    )
    assert re.fullmatch(
        rf"-m pytest .* -m transformers tests/test_one.py -x with {checkout}/{folder}", asked[1]
    )
    assert len(run_oldest(checkout)[1]) == len(asked) + 1  # only the tests


@pytest.mark.parametrize("ci", ["true", ""])
def test_an_oldest_transformers_that_cannot_be_had_fails_in_ci_alone(checkout, ci):
    (checkout / "offline").touch()
    done, asked = run_oldest(checkout, CI=ci)
    assert done.returncode == (1 if ci else 0)
    assert_names(done.stderr, "transformers 5.3", "left out")
    assert asked == []


# ---- python.sh: the interpreter that a script starts ----

MAKES_ITS_OWN = {
    f"scripts/{name}.sh" for name in ("quickstart", "test", "test_vllm", "ablation", "docs")
}  # through environment.sh
NEEDS_NO_PACKAGE = {"scripts/bundle.sh", "scripts/unbundle.sh"}
STARTS_PYTHON = [
    path
    for path in SHELLS
    if path.suffix == ".sh" and name(path) not in SOURCED | MAKES_ITS_OWN | NEEDS_NO_PACKAGE
]
NOTING = '#!/bin/sh\necho "$0" >> "$NOTE"\n'
NO_GPU = {"nvidia-smi": "#!/bin/sh\nexit 9\n"}
TWO_GPUS = {"nvidia-smi": "#!/bin/sh\n[ $1 = --list-gpus ] && printf 'GPU 0: a\\nGPU 1: b\\n' || echo 9.0\n"}


@pytest.fixture
def clone(tmp_path):
    """The scripts of a clone, and a folder `bin` on PATH."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    (tmp_path / "clone" / "llava" / "train").mkdir(parents=True)
    shutil.copy(ROOT / "llava" / "train" / "train_mem.py", tmp_path / "clone" / "llava" / "train")
    add_commands(tmp_path / "bin", NO_GPU)
    return tmp_path / "clone"


def add_commands(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for command, text in texts.items():
        (folder / command).write_text(text)
        (folder / command).chmod(0o755)


def start(clone: Path, path: Path, **variables) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run a clone's script from another folder; returns (the finished process, the interpreters that ran)."""
    note = clone.parent / "note"
    note.unlink(missing_ok=True)
    system = {"PATH": f"{clone.parent / 'bin'}:/usr/bin:/bin", "HOME": str(clone), "NOTE": str(note)}
    done = subprocess.run(
        ["bash", clone / path.relative_to(ROOT)],
        cwd=clone.parent,
        env=system | {"PROJECTOR_TYPES": "none", "COUNT_SHAPES": "", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, set(note.read_text().split()) if note.exists() else set()


@pytest.mark.slow
@pytest.mark.parametrize("path", STARTS_PYTHON, ids=name)
def test_a_script_uses_the_quick_starts_environment_where_none_is_active(clone, path):
    own = clone / ".venv" / "bin" / "python"
    add_commands(own.parent, {"python": NOTING})
    add_commands(clone.parent / "bin", {"python": NOTING})
    done, started = start(clone, path)
    assert (done.returncode, started) == (0, {str(own)}), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON"])
@pytest.mark.parametrize("path", STARTS_PYTHON[::6], ids=name)
def test_an_active_environment_or_a_named_interpreter_wins(clone, path, variable):
    add_commands(clone / ".venv" / "bin", {"python": NOTING})
    other = clone.parent / "bin" / ("python3.x" if variable == "PYTHON" else "python")
    add_commands(other.parent, {other.name: NOTING})
    done, started = start(clone, path, **{variable: str(other)})
    assert (done.returncode, started) == (0, {str(other)}), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["python", "python3"])
@pytest.mark.parametrize("path", STARTS_PYTHON[::6], ids=name)
def test_a_python_that_is_found_is_used_where_there_is_no_environment(clone, path, command):
    add_commands(clone.parent / "bin", {command: NOTING})
    done, started = start(clone, path)
    assert (done.returncode, started) == (0, {str(clone.parent / "bin" / command)}), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "gpus"),
    [
        *(pytest.param(path, NO_GPU, id=name(path)) for path in STARTS_PYTHON),
        *(pytest.param(path, TWO_GPUS, id=f"{name(path)}, two GPUs") for path in STARTS_PYTHON[::3]),
    ],
)
def test_an_interpreter_without_the_package_ends_in_a_line_that_says_what_to_do(clone, path, gpus):
    bare = f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n'  # only the standard library
    add_commands(clone.parent / "bin", {"python": bare, **gpus})
    done, _ = start(clone, path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Run 'bash scripts/quickstart.sh'" in last
    assert "'pip install -e .'" in last
