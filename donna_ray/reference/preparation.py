"""How images are prepared for weights in a file, as what lies beside or in the file says."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from pydantic import PositiveInt, TypeAdapter, ValidationError

from donna_ray.config import DataConfig, ReferenceConfig
from donna_ray.config.data import PREPARATION
from donna_ray.errors import ConfigError
from donna_ray.reference.timm_names import current_name

__all__ = ["BESIDE", "preparation_beside", "preparation_within", "prepare_so"]

_LOG = logging.getLogger(__name__)
BESIDE = "config.json"
_SIZE = TypeAdapter(tuple[PositiveInt, PositiveInt, PositiveInt])  # channels, height, width


def preparation_beside(config: ReferenceConfig) -> dict[str, Any]:
    """What the `config.json` beside a file of weights says otherwise than timm of the model.

    It is read as timm writes it (`timm.models.save_for_hf`).

    Returns:
        Of timm's data configuration: `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode` and
        `input_size`. Empty where there is none, or where it is of another model.

    Raises:
        ConfigError: it is no JSON, or a value in it cannot be.
    """
    path = Path(config.weights).with_name(BESIDE)
    if config.weights in ("train", "pretrained") or not path.is_file():
        return {}
    told = _read(path)
    if not isinstance(settings := told.get("pretrained_cfg"), Mapping):
        return {}
    whose = str(told.get("architecture"))
    if _bare(whose) != _bare(current_name(config.model)):
        words = "%s is not used: it is of the model %s, and reference.model is %s."
        _LOG.warning(words, path, whose, config.model)
        return {}
    return _other(config.model, _checked(settings, str(path)))


def preparation_within(content: Any, model: str, path: Path) -> dict[str, Any]:
    """Likewise what the arguments of timm's train.py say that are in a checkpoint.

    But for the size: the model has been built. Where that is another one, it is told. Other
    programs have arguments of these names, too: what cannot be is told and not used.

    Args:
        content: of the checkpoint.
        model: timm's name.
        path: of the checkpoint, for messages.
    """
    arguments = content.get("args") if isinstance(content, Mapping) else None
    settings = arguments if isinstance(arguments, Mapping) else getattr(arguments, "values", None)
    if not isinstance(settings, Mapping):
        return {}
    size = settings.get("input_size") or settings.get("img_size")
    given = {**settings, "input_size": (3, size, size) if isinstance(size, int) else size}
    told = _other(model, _usable(given, f"args of {path}"))
    if size := told.pop("input_size", None):
        words = "%s was trained with images of %s: set data.image_size, if it is to be that."
        _LOG.warning(words, path, " x ".join(map(str, size[1:])))
    return told


def prepare_so(model: Any, told: Mapping[str, Any], origin: object, *, say: bool = True) -> None:
    """Have ``preprocessing_of`` give for a model what was told of its weights.

    Args:
        model: of timm.
        told: of timm's data configuration.
        origin: that told it, to say so.
        say: log it.
    """
    if told:
        model.pretrained_cfg = {**model.pretrained_cfg, **told}
        words = ", ".join(f"{name} {_words(value)}" for name, value in told.items())
        level = logging.WARNING if say else logging.DEBUG
        _LOG.log(level, "Images are prepared as %s says: %s.", origin, words)


def _bare(model: str) -> str:
    return model.partition(".")[0]


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path} must be JSON, for it says how images are prepared for the weights beside it, "
            f"but it is not: {error}. Copy it again, or the weights to a folder without it."
        ) from error
    return told if isinstance(told, Mapping) else {}


def _usable(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """``_checked``, but for what cannot be, which is told."""
    told: dict[str, Any] = {}
    for name in (*PREPARATION, "input_size"):
        value = settings.get(name)
        if value is None or value == "":  # as of an option that was not given
            continue
        try:
            told |= _checked({name: value}, origin)
        except ConfigError as error:
            _LOG.warning("It is not used, and timm's for the model is: %s", error)
    return told


def _checked(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Those of timm's data configuration, by the rules of the section `data`."""
    given = {name: settings.get(name) for name in PREPARATION}
    size = settings.get("input_size")
    try:
        told = DataConfig.model_validate({**given, "source": "."}).preparation()
        if size is not None:
            told["input_size"] = _SIZE.validate_python(size)
    except ValidationError as error:
        [fault, *_] = error.errors()
        named = [each for each in fault["loc"][:1] if isinstance(each, str)]
        name = named[0] if named else "input_size"
        raise ConfigError(
            f"{origin}: {name} must be what timm takes for images, but is {fault['input']!r}: "
            f"{fault['msg']}. Correct it, or move the weights to where it is not."
        ) from error
    return told


def _other(model: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as timm has it for a model."""
    known = timm.get_pretrained_cfg(current_name(model), allow_unregistered=True)
    own = known.to_dict() if known else {}
    return {name: value for name, value in told.items() if own.get(name) != value}
