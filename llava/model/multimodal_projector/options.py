"""Options of projectors: each is declared once, in its projector's file, as a field of a ProjectorOptions.

The declaration gives the trainer's flag, the key of config.json, the study's YAML key, the check of what a
resumed or second stage may not change, and the table in docs/projectors.md. This file does not import torch,
so that --help is quick.
"""

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llava.errors import UserError

FOLDER = Path(__file__).parent
REGISTRY = FOLDER / "builder.py"
KINDS = {kind.__name__: kind for kind in (bool, int, float, str)}  # the types that a flag can have


def option(
    default: Any, help_text: str, fixes_weights: bool = True, form: Callable[[Any], Any] | None = None
) -> Any:
    """A field of a ProjectorOptions. Default and help text must be literals: `--help` parses the source.

    Args:
        default: the value for a model whose config.json has no such key.
        help_text: what the option does, without the default.
        fixes_weights: whether weights trained with one value cannot be used with another.
        form: turns a value into a form in which equal settings compare as equal.
    """
    metadata = {"help": help_text, "fixes_weights": fixes_weights, "form": form or (lambda value: value)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ProjectorOptions:
    """The options of a kind of projector beside its widths and s; their names are keys of config.json.

    Every kind has the options declared here. A kind with more of them declares a subclass.
    """

    mm_projector_norm: bool = option(
        False,
        "Every visual token is normalised to the root mean square of the language model's embeddings, times "
        "a gain that learns.",
    )
    mm_projector_input_norm: bool | None = option(
        None,
        "Each of the tower's layers that the projector reads is normalised over its channels first; by "
        "default in visualprism_v2 alone.",
    )

    @classmethod
    def of(cls, fields: object) -> "ProjectorOptions":
        """Read the options from a configuration; those that it lacks get their defaults."""
        values: dict[str, Any] = {
            declared.name: getattr(fields, declared.name, declared.default) for declared in cls.declared()
        }
        return cls(**values)

    @classmethod
    def declared(cls) -> tuple[dataclasses.Field, ...]:
        return dataclasses.fields(cls)

    def fixed_by_weights(self) -> dict[str, Any]:
        """Maps each option on which trained weights depend to its value, in a form that can be compared."""
        return {
            declared.name: declared.metadata["form"](getattr(self, declared.name))
            for declared in self.declared()
            if declared.metadata["fixes_weights"]
        }


class DeclaredOption(NamedTuple):
    """An option as its file declares it; `kind` is its type without None."""

    name: str
    kind: type
    default: Any
    help_text: str


def declared_options() -> list[DeclaredOption]:
    """The options of all projectors, read from their files without importing them.

    Raises UserError if one is declared in a way that cannot be read, or if two have the same name.
    """
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.AnnAssign(target=ast.Name(name), value=ast.Call(func=ast.Name("option"))):
                    declared = _declared(node, f"{file}, line {node.lineno}")
                    if name in found:
                        raise UserError(
                            f"{file}, line {node.lineno}: there is another option {name}; rename one."
                        )
                    found[name] = declared
    return list(found.values())


def _declared(node: ast.AnnAssign, place: str) -> DeclaredOption:
    kind = KINDS.get(ast.unparse(node.annotation).removesuffix(" | None"))
    try:
        default, help_text = (ast.literal_eval(value) for value in node.value.args[:2])  # type: ignore[union-attr]
    except ValueError:
        kind = None
    if kind is None:
        raise UserError(
            f"{place}: an option is declared as NAME: TYPE = option(DEFAULT, HELP, ...). The type is one of "
            f"{', '.join(KINDS)}, optionally with | None; default and help text are literals."
        )
    return DeclaredOption(node.target.id, kind, default, help_text)  # type: ignore[union-attr]


def registered_types() -> list[str]:
    """The names of builder.PROJECTORS, read from the file without importing it."""
    for node in ast.parse(REGISTRY.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and node.target.id == "PROJECTORS":  # type: ignore[union-attr]
            return [ast.literal_eval(key) for key in node.value.keys]  # type: ignore[union-attr]
    raise AssertionError(f"{REGISTRY} has no PROJECTORS")
