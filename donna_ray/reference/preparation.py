"""How images are prepared for weights in a file, as what lies beside or in the file says."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from pydantic import PositiveInt, TypeAdapter, ValidationError

from donna_ray.config import DataConfig, ReferenceConfig
from donna_ray.config.data import PREPARATION
from donna_ray.errors import ConfigError
from donna_ray.reference.checkpoint_file import read_arguments
from donna_ray.reference.timm_names import current_name

__all__ = [
    "BESIDE",
    "NO_FILE",
    "beside",
    "is_of",
    "preparation_beside",
    "preparation_within",
    "prepare_so",
]

_LOG = logging.getLogger(__name__)
BESIDE = "config.json"
NO_FILE = ("train", "pretrained")  # weights that are in no file
_SIZE = TypeAdapter(tuple[PositiveInt, PositiveInt, PositiveInt])  # channels, height, width


def beside(config: ReferenceConfig, *, say: bool = True) -> Mapping[str, Any]:
    """What is in the `config.json` beside a file of weights, as timm writes it.

    (`timm.models.save_for_hf`; one of timm's older form has all in one.)

    Args:
        config: names the model and the weights.
        say: log where it is of another model.

    Returns:
        Empty where there is none, or where it is of another model.

    Raises:
        ConfigError: it is no JSON.
    """
    path = _path_beside(config)
    told = {} if config.weights in NO_FILE or not path.is_file() else _read(path)
    if not told.keys() & {"architecture", "pretrained_cfg"}:  # of other programs
        return {}
    whose = str(told.get("architecture"))
    if not is_of(whose, config.model):
        if say:
            words = "%s is not used: it is of the model %s, and reference.model is %s."
            _LOG.warning(words, path, whose, config.model)
        return {}
    return told


def preparation_beside(config: ReferenceConfig) -> dict[str, Any]:
    """What the `config.json` beside a file of weights says otherwise than timm of the model.

    Returns:
        Of timm's data configuration: `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode` and
        `input_size`. Empty where there is none, or where it is of another model. What has no
        `pretrained_cfg` may be of another program: what cannot be is told and not used.

    Raises:
        ConfigError: it is no JSON, or a value in its `pretrained_cfg` cannot be.
    """
    told = beside(config)
    settings, arguments = told.get("pretrained_cfg", told), told.get("model_args")
    if not isinstance(settings, Mapping):
        return {}
    size = arguments.get("img_size") if isinstance(arguments, Mapping) else None
    given = {**settings, "input_size": _of_channels(size)} if size else settings
    read = _checked if "pretrained_cfg" in told else _usable
    return _other(config.model, read(given, str(_path_beside(config))))


def preparation_within(config: ReferenceConfig, size: Sequence[int]) -> dict[str, Any]:
    """Likewise what the arguments of timm's train.py say that are in a checkpoint.

    But for the size: the model has been built. Where that is another one, it is told. Other
    programs have arguments of these names, too: what cannot be is told and not used.

    Args:
        config: names the model and the checkpoint.
        size: height and width of an image, for which the model is built.
    """
    settings = {} if config.weights in NO_FILE else read_arguments(Path(config.weights))
    trained = settings.get("input_size") or settings.get("img_size")
    given = {**settings, "input_size": _of_channels(trained)}
    told = _usable(given, f"args of {config.weights}")
    if tuple(told.pop("input_size", (0, *size))[1:]) != tuple(size):
        words = "%s was trained with images of %s: set data.image_size, if it is to be that."
        sides = " x ".join(map(str, given["input_size"][1:]))
        _LOG.warning(words, config.weights, sides)
    return _other(config.model, told)


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


def is_of(architecture: str, model: str) -> bool:
    """timm's name, with or without a tag, and another one are of one model."""
    return current_name(architecture).partition(".")[0] == current_name(model).partition(".")[0]


def _path_beside(config: ReferenceConfig) -> Path:
    return Path(config.weights).with_name(BESIDE)


def _of_channels(size: Any) -> Any:
    """The size of an image, with channels where only its side or its sides are known."""
    sides = (size, size) if isinstance(size, int) else size
    two = isinstance(sides, list | tuple) and len(sides) == 2
    return (3, *sides) if two else sides


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
