"""Reads a configuration from YAML and explains what is wrong with it."""

import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from device_farm.reading import read_yaml
from donna_ray.config.models import CONFIGS, RunConfig, SpaceConfig
from donna_ray.config.values import Section
from donna_ray.credentials import NO_CREDENTIALS, has_credentials, without_credentials
from donna_ray.errors import ConfigError

__all__ = ["kept_module", "load_config", "preset_space", "section_of", "shipped_config"]

Kind = TypeVar("Kind", bound=Section)


_NULL = ("null", "~")


def shipped_config(name: str) -> Path:
    """The path of a configuration that comes with the package, such as `demo`."""
    return CONFIGS / f"{name}.yaml"


def preset_space(name: str) -> SpaceConfig:
    """A space that comes with the package (``PRESETS``, but for `compress`)."""
    return SpaceConfig.model_validate(_read_yaml(CONFIGS / "spaces" / f"{name}.yaml"))


def section_of(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """A section of these values, which a person gives in Python.

    Raises:
        ConfigError: a key or value breaks a rule, as in ``load_config``.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(item, kind) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def load_config(
    path: Path, overrides: Sequence[str] = (), options: Mapping[str, str] = {}
) -> RunConfig:
    """Read a run's configuration.

    A Python file of a run's `space.modules` that is gone is the one that the run folder keeps.

    Args:
        path: a YAML file.
        overrides: `a.b=c` each, the value in YAML's notation; they win over the file.
        options: of the command line, by the key `a.b` that one gives in the overrides.

    Raises:
        ConfigError: the file cannot be read, or a key or value breaks a rule. The message names
            each key, its value, where it is from, and the remedy.
    """
    values = _read_yaml(path)
    _find_modules(values, path.parent)
    for override in overrides:
        _apply_override(values, override)
    names = [override.partition("=")[0] for override in overrides]
    origins = {name: options.get(name, f"--set {name}") for name in names}
    for where, text in _texts(values):
        if has_credentials(text):
            shown = f"{'.'.join(where)} {NO_CREDENTIALS} (it is {_short(text)})"
            raise ConfigError(f"{_origin(where, origins) or path}: {shown}.")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{_origin([str(part) for part in item['loc']], origins) or path}: {_explain(item)}"
            for item in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from None


def kept_module(folder: Path, number: int, name: str) -> Path:
    """Where a run folder keeps a Python file of `space.modules`, by its place in that list."""
    return folder / "modules" / str(number) / Path(name).name


def _find_modules(values: dict[str, Any], folder: Path) -> None:
    space = values.get("space")
    modules = space.get("modules") if isinstance(space, dict) else None
    if not isinstance(modules, list):
        return
    for number, name in enumerate(modules):
        if isinstance(name, str) and name.endswith(".py") and not Path(name).expanduser().is_file():
            kept = kept_module(folder, number, name)
            if kept.is_file():
                modules[number] = str(kept)


def _texts(values: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a configuration, and the key under which it is."""
    if isinstance(values, str):
        yield where, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(value, (*where, str(key)))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, where)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"The configuration must be a file, but {path} does not exist. Correct the path, or "
            "start from the demo's: `donna config show demo > search.yaml`."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The configuration {path} cannot be read ({error}). Give a YAML file."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} must be YAML, but is not. Mend this: {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must be a mapping of sections, but is {values!r:.60}. See "
            "`donna config schema` for the sections."
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(
            f"--set takes KEY=VALUE such as search.evaluations=100, not {_short(override)}."
        )
    shown = without_credentials(override)
    *sections, key = name.split(".")
    for section in sections:
        name = _key_in(values, section)
        if values.get(name) is None:  # not there, or off
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {shown}: {section!r} must be a section, but holds {_short(values)}. Name a "
                "key that `donna config schema` lists."
            )
    try:
        value = read_yaml(text)
    except ValueError:
        raise ConfigError(f"--set {shown}: the value must be YAML. Quote it.") from None
    if value is None and text.strip().lower() not in _NULL:
        raise ConfigError(
            f"--set {shown}: the value must not be empty, as that of a variable that is not set. "
            "Write null for none, or '' for an empty text."
        )
    values[_key_in(values, key)] = value


def _key_in(values: dict[Any, Any], text: str) -> Any:
    """The key that is written like this: those of space.stages are numbers in YAML."""
    return next((key for key in values if str(key) == text), text)


def _origin(where: Sequence[str], origins: dict[str, str]) -> str | None:
    """What on the command line gave the value of a key, or a part of it."""
    for name in reversed(origins):
        key = name.split(".")
        if where and key[: len(where)] == list(where[: len(key)]):
            return origins[name]
    return None


def _explain(error: Any, root: type[Section] = RunConfig) -> str:
    """One line for one of pydantic's errors: the key, the rule, the value and the remedy."""
    where = ".".join(str(part) for part in error["loc"])
    value, kind = error["input"], error["type"]
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return f"{where} {text} (it is {_short(value)})." if where else f"{text}."
    if kind == "extra_forbidden":
        return (
            f"{where} is no known key (its value is {_short(value)}). "
            f"{_known_keys(error['loc'], root)}"
        )
    if kind == "missing":
        return f"{where} must be given, but is missing. `donna config schema` says what it takes."
    if kind == "too_short":
        return f"{where} must not be empty, but is {value!r}. Give at least one entry."
    rule = error["msg"][:1].lower() + error["msg"][1:]
    return f"{where}: {rule}, but it is {_short(value)}. Change this value."


def _short(value: Any) -> str:
    return textwrap.shorten(without_credentials(repr(value)), 200, placeholder=" …")


def _known_keys(location: Sequence[str | int], root: type[Section]) -> str:
    model: Any = root
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:  # not a key of a mapping
            model = _section_within(model.model_fields[part].annotation)
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Keys here: {', '.join(known)}."


def _section_within(annotation: Any) -> Any:
    """The section type in an annotation such as `list[X] | None`; None where there is none."""
    if hasattr(annotation, "model_fields"):
        return annotation
    found = (_section_within(argument) for argument in getattr(annotation, "__args__", ()))
    return next((section for section in found if section is not None), None)
