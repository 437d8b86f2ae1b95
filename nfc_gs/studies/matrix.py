"""What a study's YAML says: arms, scenes, conditions, lengths and seeds, and which of their combinations are run."""

import itertools
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from nfc_gs.config import (
    ConfigError,
    Folder,
    NonNegativeInt,
    PositiveInt,
    UserError,
    kind_in,
    load,
    merge,
    near,
    read,
    spec,
    validate,
)
from nfc_gs.studies.workers.base import Workers
from nfc_gs.studies.workers.local import Local
from nfc_gs.training.experiment import Experiment

# What is typed after `nfc-gs train`: files, from the folder of the study's own file, and overrides.
Words = tuple[str, ...]


class StudyError(UserError):
    """A study is described wrongly, or its folder holds something else."""


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One combination: what is trained, on what, for how many steps, and from which seed."""

    scene: str
    condition: str
    length: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its run, which `tools/tables.py` groups by."""
        return f"{self.scene}_{self.condition}_{self.arm}_{self.length}_s{self.seed}"


@spec
class Part:
    """Some combinations: on each axis what is named, or everything that the study names there."""

    scene: str | list[str] | None = None
    condition: str | list[str] | None = None
    length: PositiveInt | list[PositiveInt] | None = None
    arm: str | list[str] | None = None
    seed: NonNegativeInt | list[NonNegativeInt] | None = None


@spec
class Matrix:
    """A study: every arm on every scene in every condition, of every length, from every seed.

    Arms, scenes and conditions are names with what would be typed after `nfc-gs train`: settings files, whose paths begin
    at the study's own folder, and overrides. Of one run the scene lies lowest, then come the study's `settings`, the
    condition, and the arm on top; null takes one out that a `base` brought. Steps, seed and the run's folder, below
    `output/name`, are the study's. `controls` are the arms that all others are compared with. `exclude` takes combinations
    out and `include` adds some, of other lengths or seeds too. The held-out views are looked at `evaluations` times in a
    run, at equal steps. Without `keep_models` a finished run's checkpoints are deleted: a study has hundreds.
    """

    name: str
    output: Folder = Path("runs")
    settings: Words = ()
    arms: dict[str, Words | None]
    controls: tuple[str, ...]
    scenes: dict[str, Words | None]
    conditions: dict[str, Words | None] = field(default_factory=lambda: {"clean": ()})
    lengths: tuple[PositiveInt, ...]
    seeds: tuple[NonNegativeInt, ...]
    exclude: tuple[Part, ...] = ()
    include: tuple[Part, ...] = ()
    evaluations: PositiveInt = 10
    keep_models: bool = True
    workers: Annotated[Workers, kind_in("nfc_gs.studies.workers")] = Local()

    @property
    def folder(self) -> Path:
        """Where the runs are, their logs, and the study's tables."""
        return self.output / self.name


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A combination with its settings, resolved."""

    cell: Cell
    experiment: Experiment


def read_matrix(path: Path, overrides: tuple[str, ...] = ()) -> Matrix:
    """The study that a file and overrides of it describe; it is called after its file unless it says otherwise.

    Raises:
        ConfigError: as for every settings file.
        StudyError: what is named does not exist, or there is nothing to run.
    """
    matrix = load(Matrix, [path], overrides, defaults={"name": path.stem})
    matrix = replace(
        matrix,
        arms=_there(matrix.arms),
        scenes=_there(matrix.scenes),
        conditions=_there(matrix.conditions),
    )
    for axis, names in {"name": (matrix.name,), **{axis: getattr(matrix, axis) for axis in _NAMED.values()}}.items():
        for name in names:
            if not name or set(name) & set("/\\ \t\n") or name.startswith("."):
                raise StudyError(
                    f"{path}: {axis}: {name!r} cannot be part of a folder's name; use letters, digits, - and _"
                )
    for control in matrix.controls:
        _known(path, "controls", control, matrix.arms)
    if not cells(matrix, path):
        raise StudyError(f"{path}: describes no run; arms, scenes, conditions, lengths and seeds need one entry each")
    return matrix


def cells(matrix: Matrix, path: Path) -> list[Cell]:
    """Every combination that is run: short ones first, then seed by seed, so that what is done early can be compared.

    Raises:
        StudyError: `exclude` or `include` names what is nowhere, or two combinations would share a folder.
    """
    everything = set(_combinations(matrix, Part(), path, "arms"))
    for part in matrix.exclude:
        everything -= set(_combinations(matrix, part, path, "exclude"))
    for part in matrix.include:
        everything |= set(_combinations(matrix, part, path, "include"))
    places = {axis: list(getattr(matrix, name)) for axis, name in _NAMED.items()}
    ordered = sorted(
        everything,
        key=lambda cell: (cell.length, cell.seed, *(places[axis].index(getattr(cell, axis)) for axis in places)),
    )
    names: dict[str, Cell] = {}
    for cell in ordered:
        other = names.setdefault(cell.name, cell)
        if other != cell:
            raise StudyError(f"{path}: {other} and {cell} would both be called {cell.name}; rename one of their parts")
    return ordered


def plan(matrix: Matrix, path: Path, threads: int) -> list[Planned]:
    """Every combination with its settings, all checked before anything is run.

    Raises:
        ConfigError: naming the run whose settings are wrong.
    """

    @cache
    def settings(words: tuple[str, ...]) -> dict[str, Any]:
        files = [path.parent / Path(word).expanduser() for word in words if "=" not in word]
        return read(files, [word for word in words if "=" in word])

    planned = []
    for cell in cells(matrix, path):
        merged: dict[str, Any] = {}
        for words in (
            matrix.scenes[cell.scene],
            matrix.settings,
            matrix.conditions[cell.condition],
            matrix.arms[cell.arm],
        ):
            merged = merge(merged, settings(tuple(words or ())))
        own = {
            "name": cell.name,
            "output": str(matrix.folder),
            "seed": cell.seed,
            "steps": cell.length,
            "threads": threads,
            "evaluation": {"every": max(cell.length // matrix.evaluations, 1)},
        }
        try:
            experiment = validate(Experiment, merge(merged, own), f"{path}: {cell.name}")
        except ConfigError as mistake:
            missing = [name for name in ("dataset", "losses", "strategy") if name not in merged]
            if missing:
                raise StudyError(
                    f"{path}: scene {cell.scene} names no settings with {missing[0]}, as static/fox.yaml"
                ) from None
            raise mistake
        planned.append(Planned(cell=cell, experiment=experiment))
    return planned


# The axes whose values are names, and where a matrix keeps them; and those whose values are numbers.
_NAMED = {"scene": "scenes", "condition": "conditions", "arm": "arms"}
_NUMBERED = {"length": "lengths", "seed": "seeds"}


def _combinations(matrix: Matrix, part: Part, path: Path, where: str) -> list[Cell]:
    """The combinations of a part."""
    axes: dict[str, list[Any]] = {}
    for axis in fields(Cell):
        named = getattr(part, axis.name)
        values = list(getattr(matrix, (_NAMED | _NUMBERED)[axis.name]))
        if named is not None:
            values = named if isinstance(named, list) else [named]
        if axis.name in _NAMED:
            for value in values:
                _known(path, where, value, getattr(matrix, _NAMED[axis.name]))
        axes[axis.name] = values
    return [Cell(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def _there(named: dict[str, Words | None]) -> dict[str, Words | None]:
    """Without what null takes out."""
    return {name: words for name, words in named.items() if words is not None}


def _known(path: Path, where: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        raise StudyError(f"{path}: {where} names {name!r}, which is not among {', '.join(known)}{near(name, known)}")
