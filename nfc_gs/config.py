"""Reads an experiment's YAML into frozen, typed specs, and writes it back.

A family is a package, a member is a module, and the module's name is its `kind`: `strategy: {kind: mcmc}` is the `Spec`
of `nfc_gs/strategies/mcmc.py`. A dotted kind names a module anywhere, which is how `dynamic`, or a package of your own,
joins without `nfc_gs` importing it. This module knows nothing of Gaussians and imports no torch.
"""

import dataclasses
import difflib
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as _dataclass

__all__ = ["Folder", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Share"]

T = TypeVar("T")

# A number in [0, 1].
Share = Annotated[float, Field(ge=0, le=1)]
# A path made absolute when it is read, so that a run's saved settings mean the same from any folder.
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class UserError(Exception):
    """A user's mistake: the program prints its one line and exits with status 2, without a traceback."""


class ConfigError(UserError):
    """The settings, or an override of them, do not describe an experiment."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def spec(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen, keyword-only dataclass that checks its values and refuses unknown keys."""
    settings = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return _dataclass(cls, frozen=True, kw_only=True, config=settings)  # type: ignore[return-value]


def kind_in(family: str) -> BeforeValidator:
    """Marks a field whose value is chosen by `kind` among the modules of `family`."""

    def choose(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        settings = dict(value)
        kind = settings.pop("kind", None)
        if not isinstance(kind, str):
            raise ValueError(f"needs a `kind`: one of {', '.join(kinds(family))}")
        member = find(family, kind)
        known = [f.name for f in dataclasses.fields(member)]
        for key in settings:
            if key not in known:
                raise ValueError(
                    f"kind {kind!r} has no setting {key!r} ({', '.join(known) or 'none'})" + near(key, known)
                )
        try:
            return TypeAdapter(member).validate_python(settings)
        except ValidationError as error:
            # The schema ends where a kind is chosen, so only here can a key that is misspelt further down be told.
            for mistake in error.errors():
                if mistake["type"] == "unexpected_keyword_argument" and (hint := _near_in(member, mistake["loc"])):
                    where = ".".join(map(str, mistake["loc"]))
                    raise ValueError(f"kind {kind!r} has no setting {where!r}{hint}") from None
            raise

    return BeforeValidator(choose)


def kinds_in(family: str) -> BeforeValidator:
    """Marks a mapping whose keys are kinds of `family`: `{l1: {weight: 0.8}}`; null drops one."""

    def choose(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping whose keys are among {', '.join(kinds(family))}")
        chosen = {name: settings for name, settings in value.items() if settings is not None}
        return {
            name: {"kind": name} | settings if isinstance(settings, dict) else settings
            for name, settings in chosen.items()
        }

    return BeforeValidator(choose)


def kinds(family: str) -> list[str]:
    """The members of a family, by reading its folder: nothing is registered anywhere."""
    package = importlib.import_module(family)
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


def find(family: str, kind: str) -> type:
    """The `Spec` of one member; it is imported only now, so a machine without CUDA never imports gsplat."""
    if "." not in kind and kind not in kinds(family):
        elsewhere = "; a kind of another package has a dotted name: `nfc-gs kinds` lists them"
        raise ValueError(
            f"no kind {kind!r} in {family} ({', '.join(kinds(family))})" + (near(kind, kinds(family)) or elsewhere)
        )
    module = kind if "." in kind else f"{family}.{kind}"
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"kind {kind!r} is neither a kind of {family} nor the dotted name of a module")
    try:
        return importlib.import_module(module).Spec
    except ModuleNotFoundError as missing:
        if missing.name and f"{module}.".startswith(f"{missing.name}."):
            package, _, name = missing.name.rpartition(".")
            hint = near(name, kinds(package)) if package else ""
            raise ValueError(f"no kind {kind!r}: there is no module {missing.name!r}{hint}") from None
        raise ValueError(f"kind {kind!r} needs the module {missing.name!r}, which is not installed") from None
    except AttributeError:
        raise ValueError(f"the module {module!r} has no `Spec`, so it is no kind of {family}") from None


def near(name: str, known: Iterable[str]) -> str:
    """The hint "; did you mean ...?", or nothing when no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def dump(value: Any) -> Any:
    """The YAML-ready form of a spec with every default written out, which `validate` reads back equal."""
    if isinstance(value, (list, tuple)):
        return [dump(v) for v in value]
    if isinstance(value, dict):
        return {name: dump(v) for name, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    if not dataclasses.is_dataclass(value):
        return value
    settings = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
    module = sys.modules[type(value).__module__]
    if getattr(module, "Spec", None) is not type(value):
        return settings
    # The folder's own members keep their short names; members from elsewhere keep the whole path.
    short = module.__name__.startswith("nfc_gs.")
    return {"kind": module.__name__.rpartition(".")[2] if short else module.__name__, **settings}


def write(value: Any, path: Path) -> None:
    """Writes a spec as YAML, under a temporary name first, so that the file is never half there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(yaml.safe_dump(dump(value), sort_keys=False, allow_unicode=True))
    os.replace(partial, path)


def text(value: Any) -> str:
    """A spec as YAML text, every default written out."""
    return yaml.safe_dump(dump(value), sort_keys=False, allow_unicode=True)


def read(paths: Sequence[Path], overrides: Sequence[str] = ()) -> dict:
    """The YAML files of `paths`, later ones over earlier ones, each over its own `base`; `a.b=value` overrides on top.

    Overrides that choose a `kind` come first, as the new kind's section starts afresh: `a.b=1 a.kind=c` keeps `b`.
    """
    settings: dict = {}
    for path in paths:
        settings = merge(settings, _read_file(path, ()))
    for override in sorted(overrides, key=_chooses_kind, reverse=True):
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form section.key=value")
        change = _parse(value, override)
        for name in reversed(key.split(".")):
            change = {name: change}
        settings = merge(settings, change)
    return _expand(settings)


def load(schema: type[T], paths: Sequence[Path], overrides: Sequence[str] = (), defaults: dict | None = None) -> T:
    """The experiment that files and overrides describe; `defaults` lie below them all.

    Raises:
        ConfigError: one line a mistake, with the key, the reason and the nearest name.
    """
    return validate(
        schema,
        merge(defaults or {}, read(paths, overrides)),
        " + ".join(map(str, paths)) + (" + overrides" if overrides else ""),
    )


def validate(schema: type[T], settings: dict, source: str) -> T:
    """Settings, as plain mappings, made into `schema`; `source` names them in an error."""
    known = [f.name for f in dataclasses.fields(schema)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise ConfigError(f"{source}: no setting {key!r}{near(str(key), known)}")
    try:
        return TypeAdapter(schema).validate_python(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{source}: {_line(e, schema)}" for e in error.errors())) from None


def validate_kind(family: str, settings: dict, source: str) -> Any:
    """One member of `family`, from its `kind` and settings."""
    try:
        return TypeAdapter(Annotated[Any, kind_in(family)]).validate_python(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{source}: {_line(e).removeprefix(': ')}" for e in error.errors())) from None


def _line(error: Any, schema: type | None = None) -> str:
    """One of pydantic's errors as `path.of.key: reason (got value)`."""
    where = ".".join(str(part) for part in error["loc"])
    reason = error["msg"].removeprefix("Value error, ")
    got = error["input"]
    shown = f" (got {got!r})" if not isinstance(got, dict) and error["type"] != "missing" else ""
    if error["type"] == "unexpected_keyword_argument":
        reason, shown = "no such setting" + _near_in(schema, error["loc"]), ""
    return f"{where}: {reason}{shown}"


def _near_in(schema: Any, location: tuple) -> str:
    """The hint for a misspelt key of a nested section, found by walking the schema."""
    for part in location[:-1]:
        types = {f.name: f.type for f in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else {}
        schema = types.get(str(part))
    return (
        near(str(location[-1]), [f.name for f in dataclasses.fields(schema)])
        if dataclasses.is_dataclass(schema)
        else ""
    )


def _read_file(path: Path, above: tuple[Path, ...]) -> dict:
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file" + near(path.name, beside)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, found {type(settings).__name__}")
    base = settings.pop("base", None)
    if base is None:
        return settings
    below = (path.parent / str(base)).resolve()
    if below in above:
        raise ConfigError(f"{path}: its base {base} leads back to itself")
    return merge(_read_file(below, (*above, path.resolve())), settings)


def _chooses_kind(override: str) -> bool:
    """Whether an override is of the form section.kind=name."""
    return override.partition("=")[0].endswith(".kind")


def _parse(value: str, override: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {value!r} is not YAML") from None


def _expand(value: Any) -> Any:
    """Replaces `${NAME}` in texts by the environment's variable."""
    if isinstance(value, dict):
        return {k: _expand(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v) for v in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{value!r} needs the environment variable {match[1]}: set it to the folder it speaks of")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`; a section that names another `kind` starts afresh, so no leftover keys."""
    if "kind" in above and above["kind"] != below.get("kind"):
        return above
    return below | {
        k: merge(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v for k, v in above.items()
    }
