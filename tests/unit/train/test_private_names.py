"""LlavaTrainer uses only public names of transformers' Trainer, and the private names of one table."""

import ast
import functools
import inspect
import textwrap
from pathlib import Path

import pytest
from transformers import Trainer

from llava.train.llava_trainer import PRIVATE, LlavaTrainer

pytestmark = pytest.mark.transformers

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "llava").rglob("*.py"))
OVERRIDDEN = sorted(
    name for name, value in vars(LlavaTrainer).items() if inspect.isfunction(value) and hasattr(Trainer, name)
)


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@functools.cache
def private_names() -> set[str]:
    """The private names of Trainer's methods, and of the attributes that they set."""
    source = ast.parse(textwrap.dedent(inspect.getsource(Trainer)))
    own = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and is_of_self(node)}
    return set(filter(is_private, vars(Trainer).keys() | own))


def is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def used(source: str) -> set[str]:
    """The private names of Trainer that a module reads, sets, calls, or defines in a class of that name."""
    tree = ast.parse(source)
    methods = {
        item.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "Trainer" in map(ast.unparse, node.bases)
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }
    return (attributes(tree) | methods) & private_names()


def test_the_search_finds_what_it_is_for():
    assert used("class A(Trainer):\n    def _save(self): ...") == {"_save"}
    assert used("def f(trainer):\n    trainer._tr_loss += 1") == {"_tr_loss"}
    assert used("class A:\n    def f(self):\n        super()._get_train_sampler()") == {"_get_train_sampler"}
    assert used("class A(Trainer):\n    def log(self): self._own()") == set()


def test_no_private_name_is_used_that_is_not_in_the_table():
    found = {name: path for path in FILES for name in used(path.read_text(encoding="utf-8"))}
    assert found.keys() == PRIVATE.keys(), found


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_takes_what_trainer_gives_it(name):
    """The arguments have Trainer's order and names."""
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(getattr(LlavaTrainer, name)).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
    assert takes_all or list(ours) == list(theirs)


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_in_the_table_is_overridden_and_its_test_runs_with_the_oldest_transformers_too(name):
    assert name in OVERRIDDEN
    file, _, test = PRIVATE[name][1].partition("::")
    defined = {
        node.name: node
        for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        if hasattr(node, "name")
    }
    assert "pytest.mark.transformers" in map(ast.unparse, defined[test].decorator_list)
