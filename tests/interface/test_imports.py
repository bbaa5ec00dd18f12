"""Which package may import which: the rules of docs/architecture.md, checked by reading the code."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from llava.published import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY_OR_OPTIONAL = {
    "bitsandbytes",
    "cv2",
    "deepspeed",
    "fastapi",
    "gradio",
    "matplotlib",
    "openpyxl",
    "peft",
    "prometheus_client",
    "pyarrow",
    "tensorboard",
    "torchvision",
    "uvicorn",
    "webdataset",
}

# Files whose only purpose needs an optional package
MAY_NEED_THEM = (
    "llava/visualization/plots",
    "llava/benchmark",
    "llava/serve/app",
    "llava/serve/metrics",
    "llava/serve/protocol",
    "llava/serve/page_",
    "llava/data/table_reader",
)

# Maps a package, or a file, to what it may import from llava, by prefix
ALLOWED = {
    "llava/constants.py": (),
    "llava/__init__.py": (),
    "llava/__main__.py": ("llava.command",),
    "llava/conversation.py": ("llava.constants",),
    "llava/chat_template.py": ("llava.constants", "llava.conversation"),
    "llava/errors.py": (),
    "llava/text.py": (),
    "llava/textfile.py": (),
    "llava/wholefile.py": (),
    "llava/filelock.py": (),
    "llava/command.py": ("llava.quiet",),
    "llava/quiet.py": (),
    "llava/progress.py": (),
    "llava/tiling.py": (),
    "llava/thin.py": (),
    "llava/pictures.py": ("llava.textfile",),
    "llava/fetch.py": (),
    "llava/decoding.py": ("llava.conversation",),
    "llava/loading.py": (),
    "llava/inference.py": (
        "llava.command",
        "llava.conversation",
        "llava.loading",
        "llava.tiling",
        "llava.model.builder",
        "llava.model.plan",
    ),
    "llava/mm_utils.py": ("llava.constants", "llava.pictures", "llava.thin", "llava.tiling"),
    "llava/data": (
        "llava.command",
        "llava.constants",
        "llava.conversation",
        "llava.mm_utils",
        "llava.progress",
        "llava.textfile",
        "llava.tiling",
        "llava.data",
    ),
    "llava/model": ("llava.constants", "llava.loading", "llava.tiling", "llava.model"),
    "llava/train": (
        "llava.chat_template",
        "llava.command",
        "llava.constants",
        "llava.conversation",
        "llava.decoding",
        "llava.loading",
        "llava.quiet",
        "llava.tiling",
        "llava.model",
        "llava.data",
        "llava.train",
    ),
    "llava/hf": (
        "llava.constants",
        "llava.mm_utils",
        "llava.tiling",
        "llava.model",
        "llava.hf",
    ),
    "llava/export": (
        "llava.chat_template",
        "llava.command",
        "llava.constants",
        "llava.conversation",
        "llava.decoding",
        "llava.inference",
        "llava.tiling",
        "llava.model",
        "llava.hf",
        "llava.export",
    ),
    "llava/eval": (
        "llava.command",
        "llava.constants",
        "llava.conversation",
        "llava.decoding",
        "llava.fetch",
        "llava.inference",
        "llava.loading",
        "llava.mm_utils",
        "llava.progress",
        "llava.textfile",
        "llava.tiling",
        "llava.model.builder",
        "llava.model.plan",
        "llava.eval",
    ),
    "llava/eval/metrics": ("llava.eval.metrics",),
    "llava/visualization": (
        "llava.command",
        "llava.constants",
        "llava.conversation",
        "llava.decoding",
        "llava.inference",
        "llava.thin",
        "llava.tiling",
        "llava.mm_utils",
        "llava.visualization",
    ),
    "llava/serve": (
        "llava.command",
        "llava.constants",
        "llava.conversation",
        "llava.decoding",
        "llava.fetch",
        "llava.inference",
        "llava.mm_utils",
        "llava.pictures",
        "llava.visualization",  # the page shows its pictures
        "llava.serve",
    ),
    "llava/benchmark": ("llava",),
    "llava/published": ("llava.command", "llava.eval", "llava.inference", "llava.published"),
}
ANYONE_MAY = (
    *("llava", "llava.model", "llava.eval", "llava.errors", "llava.errors.UserError"),
    *("llava.text", "llava.text.replace_surrogates"),
    *("llava.filelock", "llava.filelock.FileLock", "llava.filelock.Held"),
    *(f"llava.wholefile.{name}" for name in ("sync", "whole_file", "write_bytes", "write_text")),
    "llava.wholefile",
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "llava").rglob("*.py"))
# The place of a published module follows from its name, but its code belongs to a package above
ALLOWED |= {
    f"{name.replace('.', '/')}.py": ("llava.published",) for name in COMMANDS if not name.endswith(".py")
}


def package_of(file: str) -> str:
    return max((name for name in ALLOWED if file == name or file.startswith(f"{name}/")), key=len)


@cache
def imports(file: str, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports anywhere, or only at its top level."""
    tree = ast.parse((ROOT / file).read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_a_package_imports_only_what_the_rules_allow():
    for file in FILES:
        allowed = ALLOWED[package_of(file)]
        for module in imports(file):
            if module.split(".")[0] == "llava" and module not in ANYONE_MAY:
                parent = module.rsplit(".", 1)[0]
                fits = any(m == a or m.startswith(f"{a}.") for a in allowed for m in (module, parent))
                assert fits, f"{file} imports {module}; its package may import {allowed}"


def test_no_modules_import_one_another_in_a_circle():
    """Imports in functions and for type checkers count too, because they only hide a circle from Python."""
    modules = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): imports(file) for file in FILES
    }
    order = TopologicalSorter(
        {name: imported & modules.keys() - {name} for name, imported in modules.items()}
    )
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_metrics_need_the_standard_library_numpy_and_rapidfuzz_alone():
    allowed = set(sys.stdlib_module_names) | {"numpy", "rapidfuzz", "llava"}
    for file in FILES:
        if file.startswith("llava/eval/metrics/"):
            assert {module.split(".")[0] for module in imports(file)} <= allowed, file


def test_optional_packages_are_imported_where_they_are_used():
    for file in FILES:
        if not file.startswith(MAY_NEED_THEM):
            packages = {module.split(".")[0] for module in imports(file, top_level_only=True)}
            assert not packages & HEAVY_OR_OPTIONAL, file


@pytest.mark.slow
def test_modules_import_without_optional_packages_and_published_class_names_cost_nothing_until_asked_for():
    """Every module but those that are for these packages; the names are those of llava.model."""
    modules = [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in FILES
        if not file.startswith(MAY_NEED_THEM)
    ]
    optional = sorted(HEAVY_OR_OPTIONAL - {"pyarrow"})  # datasets needs it, and transformers imports datasets
    code = f"""
import importlib, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] in {optional} else find(name, *rest)
)
import llava.model
assert 'torch' not in sys.modules
from llava.model import LlavaLlamaForCausalLM, LlavaConfig, LlavaMptForCausalLM
from llava.model import LlavaMistralForCausalLM, LlavaQwenForCausalLM, LlavaQwenConfig
from llava.model import *
assert LlavaMptConfig.model_type == 'llava_mpt' and not hasattr(llava.model, 'LlavaGpt')
for module in {modules}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_test_module_imports_another():
    """Code that two test modules need is in a helper module."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) test_", path.read_text(), re.M), path


def test_no_file_of_the_training_package_shadows_a_standard_module():
    """deepspeed llava/train/train_mem.py puts llava/train first on sys.path."""
    names = {path.stem for path in (ROOT / "llava" / "train").glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)


def test_the_top_level_is_the_fixed_one():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    fixed = {
        "llava",
        "scripts",
        "playground",
        "assets",
        "docs",
        "tests",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }
    assert {name for name in top if not name.startswith(".")} <= fixed | {"CONTRIBUTING.md"}
