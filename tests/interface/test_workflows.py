"""The workflows of .github parse, and run scripts and commands that exist."""

import re
from pathlib import Path

import pytest
import yaml

from llava.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_it_runs_exists(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    for script in re.findall(r"bash (\S+\.sh)", commands):
        assert (ROOT / script).is_file(), script
    assert set(re.findall(r"/visualprism\" ([a-z]+)", commands)) <= COMMANDS.keys()
    needed = {name for job in jobs.values() for name in [job.get("needs")] if name}
    assert needed <= jobs.keys()


def test_the_fast_tests_run_on_each_python_from_the_oldest_we_allow():
    fast = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["fast"]
    oldest = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    versions = fast["strategy"]["matrix"]["python"]
    assert versions[0] == oldest
    assert versions == [f"3.{minor}" for minor in range(10, 10 + len(versions))]
