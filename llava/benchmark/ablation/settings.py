"""What a study trains: the settings in one YAML file, checked before anything is run.

G is the grid side of the tower, s is scale_factor.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llava.errors import UserError
from llava.model.multimodal_projector.builder import projector_class
from llava.model.vision_config import CommonFields
from llava.textfile import read_text

QUESTION_ONLY = "none"  # a row with this projector gives the reader no image


@dataclass(frozen=True)
class Data:
    """The PrismVQA data set, and which part of it is scored.

    Args:
        folder: where the data set is made.
        num_train, num_test: number of scenes in each split.
        image_size: side in pixels of the pictures and of the tower's input.
        seed: seed of the scenes.
        rounds: how often a question of each family is asked about a training scene.
        num_validation: how many of the last training scenes are left out of training.
        score_on: "test", or "validation" while settings are still being chosen.
    """

    folder: Path
    num_train: int
    num_test: int
    image_size: int
    seed: int = 0
    rounds: int = 1
    num_validation: int = 0
    score_on: str = "test"


@dataclass(frozen=True)
class Reader:
    """The model that answers: a language model from a folder, or a small reader with random initial weights.

    Args:
        path: folder of a causal language model and its tokenizer; the other settings are then unused.
        width: width of the small reader, a multiple of 4 and of num_heads.
        num_hops: how often the small reader attends to the visual tokens.
    """

    path: Path | None = None
    width: int = 192
    num_heads: int = 6
    num_hops: int = 3


@dataclass(frozen=True)
class Training:
    """The recipe that all rows share.

    Args:
        epochs: passes over the training scenes.
        batch_size: scenes in a step, each with all of its questions.
        learning_rate: the reader's peak rate; AdamW with cosine decay to 0.
        projector_learning_rate: the projector's peak rate; None: the reader's.
        warmup: share of the steps in which the rates rise to their peaks.
        weight_decay: AdamW's weight decay, which applies to matrices only.
    """

    epochs: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    projector_learning_rate: float | None = None
    warmup: float = 0.05
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Row:
    """A projector with its settings, which the tables show in one line for each s.

    Args:
        name: unique name of the row.
        projector: a --mm_projector_type, or "none" to give the reader only the question.
        elastic: train one module on all scale factors, which take turns by step, and score it at each.
        scale_factors, seeds: those of this row; None: the study's.
        learning_rate, projector_learning_rate: those of this row; None: the recipe's.
        switches: keys of CommonFields and options of the projector, such as visualprism_hkve.
        marks: what the tables print in separate columns, such as {TPQP: "yes"}.
    """

    name: str
    projector: str
    elastic: bool = False
    scale_factors: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    learning_rate: float | None = None
    projector_learning_rate: float | None = None
    switches: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)

    def recipe(self, shared: Training) -> Training:
        """The shared recipe with this row's own rates."""
        own = {
            name: getattr(self, name)
            for name in ("learning_rate", "projector_learning_rate")
            if getattr(self, name) is not None
        }
        return dataclasses.replace(shared, **own)


@dataclass(frozen=True)
class Table:
    """One of the tables.

    Args:
        rows: names of the rows, in order.
        marks: the marks that are shown as columns, in place of the rows' names.
        scale_factors: the s that are shown; None: all, and also rows that do not compress.
    """

    rows: tuple[str, ...]
    marks: tuple[str, ...] = ()
    scale_factors: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Study:
    """All settings of a study.

    Args:
        tower: folder of the vision tower.
        seeds: seeds of initial weights and data order; each row is trained once with each seed.
        scale_factors: the s at which compressing projectors are trained.
        tables: maps a title to its table, in order.
        rates: the projector's peak rates among which rates.py chooses each row's own; None: each row has the
            rate that it or the recipe gives.
        reference: the row that others are compared with, seed by seed; None: no comparison.
    """

    data: Data
    tower: Path
    reader: Reader
    training: Training
    seeds: tuple[int, ...]
    scale_factors: tuple[int, ...]
    rows: tuple[Row, ...]
    tables: dict[str, Table]
    rates: tuple[float, ...] | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Run:
    """One training, scored at each of its scale factors (empty if the projector does not compress)."""

    row: Row
    scale_factors: tuple[int, ...]
    seed: int

    @property
    def key(self) -> str:
        """The run's name in file names."""
        name = re.sub(r"[^a-z0-9]+", "-", self.row.name.lower()).strip("-")
        factors = "".join(f"-s{s}" for s in self.scale_factors)
        return f"{name}{factors}-seed{self.seed}"


def read_study(path: Path) -> Study:
    """Read the study that a YAML file describes.

    Raises UserError if the file does not exist, a key is unknown or missing, a value has the wrong type, a
    projector or switch does not exist, or a table names an unknown row.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except (UserError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected keys and values, got {type(content).__name__}.")
    rows = tuple(_row(path, number, given) for number, given in enumerate(content.get("rows") or ()))
    tables = {
        title: _fill(Table, given, f"{path}: table {title!r}")
        for title, given in (content.get("tables") or {}).items()
    }
    parts = {
        name: _fill(kind, content.get(name), f"{path}: {name}")
        for name, kind in (("data", Data), ("reader", Reader), ("training", Training))
    }
    study = _fill(Study, {**content, **parts, "rows": rows, "tables": tables}, str(path))
    _check(study, path)
    return study


def runs_of(study: Study) -> list[Run]:
    """All runs of a study, seed by seed, so that a study that is cut short still compares all rows."""
    runs = []
    for row in study.rows:
        factors = row.scale_factors or study.scale_factors
        if row.projector == QUESTION_ONLY or not projector_class(row.projector).compresses:
            groups: list[tuple[int, ...]] = [()]
        elif row.elastic:
            groups = [tuple(factors)]
        else:
            groups = [(s,) for s in factors]
        seeds = study.seeds if row.seeds is None else row.seeds
        runs += [Run(row, group, seed) for seed in seeds for group in groups]
    return sorted(runs, key=lambda run: run.seed)


Kind = TypeVar("Kind")


def _fill(kind: type[Kind], given: dict | None, place: str) -> Kind:
    """Make a dataclass from keys and values. Raises UserError, which names `place`."""
    if not isinstance(given, dict):
        raise UserError(f"{place}: expected keys and values, got {given!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(given) - set(fields)):
        raise UserError(f"{place}: unknown {', '.join(unknown)}; choose from {', '.join(fields)}.")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if given.get(name) is None]:
        raise UserError(f"{place}: {', '.join(missing)} is missing; add it.")
    values = {}
    for name, value in given.items():
        try:
            values[name] = _cast(fields[name].type, value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{place}: {name} cannot be {value!r} ({error}).") from error
    return kind(**values)


def _cast(kind: Any, value: Any) -> Any:
    """Convert a YAML value to a field's type: paths, numbers (YAML 1.1 reads 1e-3 as text) and tuples."""
    if value is None:
        return None
    optional = {one | None: one for one in (Path, float, tuple[int, ...], tuple[float, ...])}
    kind = optional.get(kind, kind)
    if kind == tuple[float, ...]:
        if isinstance(value, list | tuple):
            return tuple(float(item) for item in value)
        raise TypeError("a list of numbers is expected")
    for item_kind, expected in ((int, "whole numbers"), (str, "names")):
        if kind == tuple[item_kind, ...]:  # type: ignore[valid-type]
            if isinstance(value, list | tuple) and all(type(item) is item_kind for item in value):
                return tuple(value)
            raise TypeError(f"a list of {expected} is expected")
    if kind is int and type(value) is not int:
        raise TypeError("a whole number is expected")
    return kind(value) if kind in (Path, float) else value


def _row(path: Path, number: int, given: Any) -> Row:
    """Make a Row: keys that are its fields stay as they are, all others become its switches."""
    place = f"{path}: row {number + 1}"
    if not isinstance(given, dict):
        raise UserError(f"{place}: expected keys and values, got {given!r}.")
    own = {field.name for field in dataclasses.fields(Row)} - {"switches"}
    switches = {key: value for key, value in given.items() if key not in own}
    projector, options = given.get("projector"), ()
    if projector not in (None, QUESTION_ONLY):
        try:
            options = projector_class(projector).Options.declared()
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    known = {field.name for field in (*dataclasses.fields(CommonFields), *options)}
    if unknown := sorted(set(switches) - known):
        raise UserError(
            f"{place}: unknown {', '.join(unknown)}; a row may have {', '.join(sorted(own))}, the keys of "
            "llava.model.vision_config.CommonFields and the options of its projector "
            f"({', '.join(option.name for option in options)})."
        )
    return _fill(Row, {**{key: given[key] for key in own & set(given)}, "switches": switches}, place)


def _check(study: Study, path: Path) -> None:
    """Check that the parts of a study agree. Raises UserError if they do not."""
    for row in study.rows:
        if row.projector != QUESTION_ONLY and projector_class(row.projector).needs_attention:
            raise UserError(
                f"{path}: {row.name}: {row.projector} needs attention, which is not cached; leave it out."
            )
    names = [row.name for row in study.rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: each row needs its own name; {', '.join(twice)} occurs twice.")
    wanted = [*(name for table in study.tables.values() for name in table.rows), study.reference]
    if strange := [name for name in wanted if name is not None and name not in names]:
        raise UserError(f"{path}: tables name rows that do not exist: {', '.join(strange)}.")
    if study.data.score_on not in ("test", "validation"):
        raise UserError(f"{path}: data.score_on must be test or validation, got {study.data.score_on!r}.")
    if study.rates and (study.data.score_on == "validation" or not study.data.num_validation):
        raise UserError(
            f"{path}: rates are chosen on scenes that data.num_validation leaves out of training, and "
            f"data.score_on must then be test; got {study.data.num_validation} and {study.data.score_on}."
        )
    if study.data.score_on == "validation" and not study.data.num_validation:
        raise UserError(f"{path}: data.score_on validation needs data.num_validation; add it.")
