"""What timm is to build a model with, as what lies beside or in the file of its weights says."""

import json
import logging
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg
from torch import nn

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.checkpoint_file import read_arguments
from donna_ray.reference.preparation import BESIDE, NO_FILE, beside, is_of
from donna_ray.reference.timm_names import current_name

__all__ = ["told_arguments"]

_LOG = logging.getLogger(__name__)
_POOL = "global_pool"
_POOLS = {  # timm's words
    *("avg", "max", "avgmax", "catavgmax", "token", "map", "prr", "align", "merge", "soft"),
    *("fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax"),
}
_OF_TRAINING = {"gp": _POOL, "bn_eps": "bn_eps"}  # timm's train.py, and other programs' otherwise
_OF_THE_RUN = ("num_classes", "in_chans", "img_size")  # the images decide, or the preparation
_OF_NO_WEIGHTS = {  # with any of them a trained model computes the same
    *("bn_momentum", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    *("pretrained_filter_fn", "pretrained_model_args", "cache_dir", "scriptable", "exportable"),
    *("no_jit", "device", "dtype"),
}
_OF_THE_FACTORY = {  # what says how a model is made or loaded, and not what it computes
    *signature(timm.create_model).parameters,
    *signature(build_model_with_cfg).parameters,
    *("features_only", "out_indices"),
}


def told_arguments(config: ReferenceConfig, *, say: bool = False) -> dict[str, Any]:
    """Arguments of timm's factory that the weights in a file were trained with.

    These are `model_args` and `global_pool` of the `config.json` beside it, and what timm's
    train.py keeps in a checkpoint (`args.model_kwargs`, `gp`, `bn_eps`). Classes, channels and size
    are the images'. Drop rates and the like change nothing of what a trained model computes.
    Other programs have a `global_pool`, `gp` or `bn_eps`, too: where timm cannot build the model
    with it, that is told and it is not used.

    Args:
        config: names the model and the weights.
        say: log them.

    Returns:
        As plain JSON. Empty where the weights are in no file, nothing is told, or all of it is as
        timm has it.

    Raises:
        ConfigError: an argument cannot be used, such as a class in a checkpoint, whose code is not
            run.
    """
    if config.weights in NO_FILE:
        return {}
    path = Path(config.weights)
    found = {f"args of {path}": _within(config, path)}
    found[str(path.with_name(BESIDE))] = _beside(config)
    given = {}
    for origin, (hints, settings) in found.items():
        known = _usable(settings, origin)
        given[origin] = _fitting(config.model, hints, known, origin, say=say) | known
    told = _other(config.model, {name: v for each in given.values() for name, v in each.items()})
    for origin, each in given.items():
        used = [f"{name} {value}" for name, value in told.items() if each.get(name) == value]
        if used and say:
            _LOG.warning("The model is built as %s says: %s.", origin, ", ".join(used))
    return told


def _beside(config: ReferenceConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What may be of timm, and what is."""
    settings = beside(config, say=False)
    return {_POOL: settings.get(_POOL)}, _mapping(settings, "model_args")


def _within(config: ReferenceConfig, path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Likewise."""
    settings = read_arguments(path)
    if not is_of(str(settings.get("model")), config.model):
        return {}, {}
    hints = {name: settings.get(known) for known, name in _OF_TRAINING.items()}
    return hints, _mapping(settings, "model_kwargs")


def _mapping(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The values in one of them; what is no mapping is not timm's."""
    value = settings.get(name)
    return value if isinstance(value, Mapping) else {}


def _usable(given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Those that are given, and change what a model computes; an empty pool has no classifier."""
    told = {}
    for name, value in given.items():
        unset = value is None or (not value and name in (_POOL, *_OF_THE_FACTORY))
        if unset or name in (*_OF_THE_RUN, *_OF_NO_WEIGHTS) or "drop" in name:
            continue
        if name in _OF_THE_FACTORY:
            raise _refused(name, origin, "says how timm makes or loads a model")
        try:
            told[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            raise _refused(name, origin, "is no number, text or list of them") from None
    return told


def _fitting(
    model: str, hints: Mapping[str, Any], known: dict[str, Any], origin: str, *, say: bool
) -> dict[str, Any]:
    """Those that are given, not known, and that timm can build the model with."""
    fitting: dict[str, Any] = {}
    for name, value in hints.items():
        if not value or name in known:
            continue
        if _can_be(name, value) and _takes(model, name, value, known):
            fitting[name] = value
        elif say:
            words = "%s has %s %s, which timm cannot build %s with: it is not used."
            _LOG.warning(words, origin, name, value, model)
    return fitting


def _can_be(name: str, value: Any) -> bool:
    if name == _POOL:
        return isinstance(value, str) and value in _POOLS
    return isinstance(value, float) and 0 < value < 1


def _takes(model: str, name: str, value: Any, known: dict[str, Any]) -> bool:
    """timm can build the model with it, or not without it either, which its error says."""
    fits = _built(model, {**known, name: value}) is not None
    return fits or _built(model, known) is None


def _refused(name: str, origin: str, why: str) -> ConfigError:
    return ConfigError(
        f"The model must be built as its weights were trained, but {origin} has {name}, which "
        f"{why}. Save the weights alone, with a config.json beside them whose model_args has what "
        "the model differs by, as text (`timm.models.save_for_hf(model, FOLDER, model_args={…})`)."
    )


def _other(model: str, told: dict[str, Any]) -> dict[str, Any]:
    """Those without which timm builds another model; all, where it cannot build it with them."""
    whole = _built(model, told) if told else None
    for name in told if whole is not None else ():
        others = {other: value for other, value in told.items() if other != name}
        if _built(model, others) == whole:
            told = others
    return told


def _built(model: str, arguments: Mapping[str, Any]) -> Any:
    """What tells a model from others but its weights; None where timm cannot build it."""
    try:
        with torch.device("meta"):
            built = timm.create_model(current_name(model), **arguments)
    except Exception:  # of whatever arguments
        return None
    shapes = {name: value.shape for name, value in built.state_dict().items()}
    return repr(built), shapes, [_settings(each) for each in built.modules()]


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module keeps of its arguments, such as an eps or a pool, but of how it is filled."""
    kept = {name: value for name, value in vars(module).items() if name[0] != "_"}
    return {name: _plain(value) for name, value in kept.items() if "init" not in name}


def _plain(value: Any) -> Any:
    """Equal for equal ones that were made twice."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)
