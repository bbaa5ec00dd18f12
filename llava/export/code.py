"""Makes one modelling file that holds all that an exported folder's classes need from this package.

The file is made from the sources. It has the imports of other packages and then each top-level definition
that the classes of llava.hf use, directly or through other definitions.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "llava"
FILE = "modeling_visualprism.py"
# Maps an Auto class to the class that it loads, with the module that defines that class
MODEL_CLASSES = {
    "AutoConfig": ("llava.hf.configuration", "VisualPrismConfig"),
    "AutoModel": ("llava.hf.modeling", "VisualPrismModel"),
    "AutoModelForImageTextToText": ("llava.hf.modeling", "VisualPrismForConditionalGeneration"),
}
PROCESSOR_CLASSES = {
    "AutoProcessor": ("llava.hf.processing", "VisualPrismProcessor"),
    "AutoImageProcessor": ("llava.hf.image_processing", "VisualPrismImageProcessor"),
}
HEAD = '''"""The classes of the model in this folder, written by python -m llava.export --with_code."""
'''


class Module:
    """The source of a module of this package, by top-level names.

    Attributes:
        name: such as llava.tiling.
        definitions: maps a name to the statement that defines it.
        imports: maps a name from this package to the module that it is imported from.
        outside: maps a name from another package to its import statement.
    """

    def __init__(self, name: str):
        self.name = name
        self.definitions: dict[str, ast.stmt] = {}
        self.imports: dict[str, str] = {}
        self.outside: dict[str, str] = {}
        text = Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8")  # type: ignore[union-attr, arg-type]
        self._lines = text.splitlines()
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._add_import(statement)
            else:
                self.definitions |= dict.fromkeys(defined_names(statement), statement)

    def _add_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        module = getattr(statement, "module", None)
        for alias in statement.names:
            name = alias.asname or alias.name
            if module is not None and module.split(".")[0] == PACKAGE:
                if alias.name != name:
                    raise AssertionError(
                        f"{self.name} imports {alias.name} as {name}: import it without a new name"
                    )
                self.imports[name] = module
            elif module != "__future__":
                only = ast.Import([alias]) if module is None else ast.ImportFrom(module, [alias], 0)
                self.outside[name.split(".")[0]] = ast.unparse(only)

    def source(self, statement: ast.stmt) -> str:
        """A definition's text, with its decorators and the comments right above it."""
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
        while self._lines[first - 2].startswith("#"):
            first -= 1
        return "\n".join(self._lines[first - 1 : statement.end_lineno])


def defined_names(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement defines in the module."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
        return
    if isinstance(statement, ast.If):
        for branch in (*statement.body, *statement.orelse):
            yield from defined_names(branch)
    elif isinstance(statement, ast.Import | ast.ImportFrom):  # inside a branch
        yield from (alias.asname or alias.name for alias in statement.names)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def names_in(node: ast.AST) -> Iterator[str]:
    """The names that code uses."""
    return (found.id for found in ast.walk(node) if isinstance(found, ast.Name))


def names_at_definition(node: ast.AST) -> Iterator[str]:
    """The names that are looked up when a statement runs: all but those in the bodies of functions."""
    in_body = ("body",) if isinstance(node, ast.FunctionDef | ast.Lambda) else ()
    if isinstance(node, ast.Name):
        yield node.id
    for part, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if part not in in_body and isinstance(child, ast.AST):
                yield from names_at_definition(child)


@dataclass
class Collected:
    """The definitions found so far, each after those that it needs when it runs."""

    modules: dict[str, Module] = field(default_factory=dict)
    pieces: dict[str, str] = field(default_factory=dict)  # maps a definition's first name to its text
    outside: set[str] = field(default_factory=set)
    reached: set[tuple[str, bool]] = field(default_factory=set)  # first names, and whether they are called
    waiting: list[tuple[Module, str]] = field(default_factory=list)  # used by functions' bodies

    def module(self, name: str) -> Module:
        if name not in self.modules:
            self.modules[name] = Module(name)
        return self.modules[name]

    def add(self, module: Module, name: str, is_called: bool = False) -> None:
        """Add a name that code of a module uses; `is_called`: the file calls it while it is imported."""
        if name in module.imports:
            self.add(self.module(module.imports[name]), name, is_called)
        elif name in module.definitions:
            self._define(module, name, is_called)
        elif name in module.outside:
            self.outside.add(module.outside[name])

    def _define(self, module: Module, name: str, is_called: bool) -> None:
        statement = module.definitions[name]
        text, (first, *_) = module.source(statement), defined_names(statement)
        if self.pieces.get(first, text) != text:
            raise AssertionError(
                f"{name} of {module.name} has another definition in another module: rename one"
            )
        runs = is_called and isinstance(statement, ast.FunctionDef)
        if (first, runs) in self.reached or (first in self.pieces and not runs):
            return
        self.reached.add((first, runs))
        now = set(names_in(statement) if runs else names_at_definition(statement)) - {name}
        for used in sorted(now):
            self.add(module, used, is_called=True)
        self.pieces.setdefault(first, text)
        self.waiting += [(module, used) for used in sorted(set(names_in(statement)) - now)]


def modelling_file() -> str:
    """The text of FILE."""
    collected = Collected()
    for module, name in (*MODEL_CLASSES.values(), *PROCESSOR_CLASSES.values()):
        collected.waiting.append((collected.module(module), name))
    while collected.waiting:
        collected.add(*collected.waiting.pop())
    imports = "\n".join(sorted(collected.outside))
    return "\n\n\n".join([f"{HEAD}\n{imports}", *collected.pieces.values()]) + "\n"


def add_code(folder: Path) -> None:
    """Put FILE into an exported folder, and name its classes in the folder's configurations."""
    (folder / FILE).write_text(modelling_file(), encoding="utf-8")
    for name, classes in (("config.json", MODEL_CLASSES), ("processor_config.json", PROCESSOR_CLASSES)):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        for part in (settings, settings.get("image_processor", {})):  # each is read for its own class
            part["auto_map"] = {auto: f"{Path(FILE).stem}.{kind}" for auto, (_, kind) in classes.items()}
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
