"""Blocks of code in README and docs: each parses, and names scripts, flags, variables and imports that exist.

Command lines that a Parser of ours reads are parsed in test_inference_flags.py.
"""

import json
import re
import shlex
import subprocess
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml
from site_parts import help_of

from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
# csv: test_data_docs.py runs it; diff: below; text: what a program shows
LANGUAGES = {"", "bash", "csv", "diff", "json", "jsonl", "python", "text", "yaml", "{eval-rst}", "{toctree}"}
TRAINER = {f"--{f.name}" for kind in (ModelArguments, DataArguments, TrainingArguments) for f in fields(kind)}
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
ENDS = {"|", "&", "||", "&&", ";", "do", "done", "}"}  # of a command within a line


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each block of a page."""
    return re.findall(
        r"^```(\S*)[^\n]*\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S
    )


def blocks_in(language: str) -> list:
    """A page and a block of it, for each block in a language; the page is also the test's name."""
    return [
        pytest.param(page, text, id=page) for page in PAGES for own, text in blocks(page) if own == language
    ]


@cache
def source_of(script: str) -> str:
    """A script's text, followed by that of the scripts that it sources."""
    file = ROOT / script
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"^ *source .*?(\w+\.sh)", text, flags=re.M):
        path = next(
            folder / name for folder in (*file.parents, ROOT / "scripts") if (folder / name).is_file()
        )
        text += source_of(path.relative_to(ROOT).as_posix())
    return text


@cache
def flags_of(script: str) -> set[str]:
    """The flags that a script's text names, and those of the command that it hands its own flags on to."""
    text = source_of(script)
    known = set(FLAG.findall(text))
    if "train_mem.py" in text:
        known |= TRAINER
    for module, first in re.findall(r"-m (llava[\w.]+)(?: ([a-z]\w+))?", text):
        known |= set(FLAG.findall(help_of(module, *filter(None, [first]))))
    return known


def commands(block: str) -> list[tuple[list[str], list[str]]]:
    """(words ahead of it, the script and its arguments) for each script that a block starts."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = [word for word in re.split(r"(;)(?=\s|$)", line) if word]
        words = shlex.split(" ".join(words), comments=True)
        while "bash" in words:
            start = words.index("bash")
            rest = words[start + 1 :]
            end = next((i for i, word in enumerate(rest) if word in ENDS), len(rest))
            found.append((words[:start], rest[:end]))
            words = rest[end + 1 :]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_in_a_language_that_is_tested(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(page))
    assert {language for language, _ in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize(("page", "block"), blocks_in("bash"))
def test_each_shell_block_parses(page, block):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "block"), blocks_in("bash"))
def test_each_script_exists_and_knows_the_flags_and_variables_that_it_is_given(page, block):
    for ahead, (script, *arguments) in commands(block):
        if script.startswith("scripts/"):
            assert (ROOT / script).is_file()
            given = {word.partition("=")[0] for word in arguments if FLAG.match(word)}
            assert given - flags_of(script) == set(), script
            variables = {word.partition("=")[0] for word in ahead if re.match(r"[A-Z_]+=", word)}
            unknown = {name for name in variables if not re.search(rf"\b{name}\b", source_of(script))}
            assert unknown - {"CUDA_VISIBLE_DEVICES"} == set(), script


@pytest.mark.parametrize(("page", "block"), blocks_in("bash"))
def test_each_exported_variable_is_one_of_training(page, block):
    known = source_of("scripts/v1_5/pretrain.sh") + source_of("scripts/v1_5/finetune.sh")
    for line in re.findall(r"^export (.*)$", block, flags=re.M):
        for name in re.findall(r"\b([A-Z_]+)=", line):
            assert re.search(rf"\b{name}\b", known), name


@pytest.mark.parametrize(("page", "block"), blocks_in("python"))
def test_each_program_compiles_and_its_imports_of_ours_exist(page, block):
    compile(block, page, "exec")
    for line in re.findall(r"^(?:from llava\S* import|import llava).*$", block, flags=re.M):
        if "meanmax" not in line:
            exec(line, {})


def test_data_blocks_parse():
    for page in PAGES:
        for language, text in blocks(page):
            if language == "yaml":
                assert yaml.safe_load(text), page
            elif language == "jsonl":
                assert [json.loads(line) for line in text.splitlines()], page
            elif language == "json" and text.lstrip().startswith(("[", "{")):
                assert json.loads(text), page


@pytest.mark.parametrize(("page", "block"), blocks_in("diff"))
def test_each_change_fits_the_file_that_it_changes(page, block):
    """The lines that it leaves are those of the file, in order."""
    (name,) = set(re.findall(r"`(llava/\S+builder\.py)`", (ROOT / page).read_text(encoding="utf-8")))
    kept = [line[1:] for line in block.splitlines() if line.startswith(" ")]
    lines = iter((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert len(kept) > 1
    assert all(line in lines for line in kept)
