"""docs/evaluation.md is right about tasks, files, scripts and flags."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from llava.eval.run import parse_args
from llava.eval.tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
SHELLS = sorted(path for path in (ROOT / "scripts/v1_5/eval").glob("*.sh") if path.name != "evaluate.sh")
LAUNCHERS = {
    "--num_processes",
    "--nnodes",
    "--node_rank",
    "--nproc_per_node",
    "--master_addr",
    "--master_port",
}


def commands() -> list[list[str]]:
    """Every command line in the bash blocks of the page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def programs() -> list[tuple[list[str], list[str]]]:
    """(program, arguments) of each command that runs a Python program."""
    found = []
    for words in commands():
        if "-m" in words:
            start = words.index("-m")
            found.append((words[start : start + 2], words[start + 2 :]))
        elif words[0] == "python":
            found.append(([words[1]], words[2:]))
    return found


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_each_tasks_files_and_sources_are_listed_as_the_command_lists_them(task):
    assert task.describe(Path("playground/data/eval")) in PAGE
    assert all(f"{task.folder}/{file.path}`" in PAGE for file in task.needs)


def test_the_command_lists_every_task(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--data-root", "elsewhere", "--list"])
    assert not stopped.value.code
    listed = capsys.readouterr().out
    assert re.findall(r"^- `(\w+)`", listed, flags=re.M) == list(TASKS)
    assert "`elsewhere/gqa/data/images`" in listed


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.stem)
def test_each_script_stands_beside_its_tasks(path):
    (row,) = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{path.name}`" in line]
    calls = re.findall(r"^evaluate(_split)? (\w+)", path.read_text(), flags=re.M)
    asked = {task for _, task in calls} | {f"{task}_test" for has_test, task in calls if has_test}
    assert asked
    assert asked <= set(re.findall(r"`(\w+)`", row)) & TASKS.keys()


def test_each_task_is_in_the_table_of_benchmarks():
    (table,) = re.findall(r"^\| benchmark \|.*?\n\n", PAGE, flags=re.M | re.S)
    assert TASKS.keys() <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.slow
def test_each_shown_command_is_understood():
    found = programs()
    assert len(found) > 6
    for program, arguments in found:
        if program[-1] == "llava.eval.run":
            parse_args(arguments)
        unknown = {word for word in arguments if word.startswith("--") and word not in help_of(*program)}
        assert not unknown, program
    for words in commands():
        if "bash" in words:
            script, *flags = words[words.index("bash") + 1 :]
            assert (ROOT / script).is_file()
            parse_args(["--model-path", "m", "--tasks", "all", *flags])


@pytest.mark.slow
def test_each_flag_named_anywhere_exists():
    known = LAUNCHERS | {"--help"}
    for program, _ in programs():
        known |= set(re.findall(r"--[a-z][\w-]*", help_of(*program)))
    assert set(re.findall(r"(?<=[\s`])--[a-z][\w-]*", PAGE)) <= known | {
        "--results_dir"
    }  # a flag of MME's own tool


def test_each_published_command_is_named():
    modules = [
        path.stem
        for path in (ROOT / "llava/eval").glob("*.py")
        if path.stem.startswith(("model_vqa", "eval_"))
    ]
    scripts = [path.name for path in (ROOT / "scripts").glob("convert_*_for_*.py")]
    assert modules
    assert scripts
    assert all(f"`llava.eval.{name}`" in PAGE for name in modules)
    assert all(f"`scripts/{name}`" in PAGE for name in scripts)
