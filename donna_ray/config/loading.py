"""Reads a configuration from YAML and explains what is wrong with it."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from donna_ray.config.models import CONFIGS, RunConfig, SpaceConfig
from donna_ray.errors import ConfigError

__all__ = ["load_config", "preset_space", "shipped_config"]


def shipped_config(name: str) -> Path:
    """The path of a configuration that comes with the package, such as `demo`."""
    return CONFIGS / f"{name}.yaml"


def preset_space(name: str) -> SpaceConfig:
    """A space that comes with the package (``PRESETS``, but for `compress`)."""
    return SpaceConfig.model_validate(_read_yaml(CONFIGS / "spaces" / f"{name}.yaml"))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        path: a YAML file.
        overrides: `a.b=c` each, the value in YAML's notation; they win over the file.

    Raises:
        ConfigError: the file cannot be read, or a key or value breaks a rule. The message names
            each key, its value and the remedy.
    """
    values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{path}: " + "\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"The configuration must be a file, but {path} does not exist. Correct the path, or "
            "start from the demo's: `donna config show demo > search.yaml`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} cannot be read ({error}). Give a YAML file."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} must be YAML, but is not. Mend this: {error}") from None
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
            f"--set takes KEY=VALUE such as search.evaluations=100, not {override!r}."
        )
    *sections, key = name.split(".")
    for section in sections:
        name = _key_in(values, section)
        if values.get(name) is None:  # not there, or off
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {override}: {section!r} must be a section, but holds {values!r}. Name a "
                "key that `donna config schema` lists."
            )
    try:
        values[_key_in(values, key)] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value must be YAML. Quote it.") from None


def _key_in(values: dict[Any, Any], text: str) -> Any:
    """The key that is written like this: those of space.stages are numbers in YAML."""
    return next((key for key in values if str(key) == text), text)


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: the key, the rule, the value and the remedy."""
    where = ".".join(str(part) for part in error["loc"])
    value, kind = error["input"], error["type"]
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        shown = re.sub(r"//[^/@]*@", "//…@", repr(value))  # a password is not for a log
        return f"{where} {text} (it is {shown})." if where else f"{text}."
    if kind == "extra_forbidden":
        return f"{where} is no known key (its value is {value!r}). {_known_keys(error['loc'])}"
    if kind == "missing":
        return f"{where} must be given, but is missing. `donna config schema` says what it takes."
    if kind == "too_short":
        return f"{where} must not be empty, but is {value!r}. Give at least one entry."
    rule = error["msg"][:1].lower() + error["msg"][1:]
    return f"{where}: {rule}, but it is {value!r}. Change this value."


def _known_keys(location: Sequence[str | int]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        if isinstance(part, str):
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
