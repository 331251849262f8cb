"""What timm is to build a model with, as what lies beside or in the file of its weights says."""

import json
import logging
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, get_model_args

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.checkpoint_file import read_arguments
from donna_ray.reference.preparation import BESIDE, NO_FILE, beside, is_of
from donna_ray.reference.timm_names import current_name

__all__ = ["told_arguments"]

_LOG = logging.getLogger(__name__)
_POOL = "global_pool"
_OF_TRAINING = {"gp": _POOL, "bn_eps": "bn_eps", "bn_momentum": "bn_momentum"}  # timm's train.py
_OF_THE_RUN = ("num_classes", "in_chans", "img_size")  # the images decide, or the preparation
_OF_THE_FACTORY = {  # what says how a model is made or loaded, and not what it computes
    *signature(timm.create_model).parameters,
    *signature(build_model_with_cfg).parameters,
    *("features_only", "out_indices", "device", "dtype"),
}


def told_arguments(config: ReferenceConfig, *, say: bool = False) -> dict[str, Any]:
    """Arguments of timm's factory that the weights in a file were trained with.

    These are `model_args` and `global_pool` of the `config.json` beside it, and what timm's
    train.py keeps in a checkpoint (`args.model_kwargs`, `gp`, `bn_eps`, `bn_momentum`). Classes,
    channels and size are the images'. Drop rates change nothing of what a trained model computes.

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
    told: dict[str, Any] = {}
    for origin, given in found.items():
        used = _other(config.model, _usable(given, origin))
        told |= used
        if used and say:
            words = ", ".join(f"{name} {value}" for name, value in used.items())
            _LOG.warning("The model is built as %s says: %s.", origin, words)
    return told


def _beside(config: ReferenceConfig) -> Mapping[str, Any]:
    settings = beside(config, say=False)
    return {_POOL: settings.get(_POOL), **_spread(settings, "model_args")}


def _within(config: ReferenceConfig, path: Path) -> Mapping[str, Any]:
    settings = read_arguments(path)
    if not is_of(str(settings.get("model")), config.model):
        return {}
    given = {name: settings.get(known) for known, name in _OF_TRAINING.items()}
    return {**given, **_spread(settings, "model_kwargs")}


def _spread(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The values in one of them; what is no mapping stays, for timm to refuse it."""
    value = settings.get(name)
    return value if isinstance(value, Mapping) else {name: value}


def _usable(given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Those that are given, and change what a model computes; an empty pool has no classifier."""
    told = {}
    for name, value in given.items():
        unset = value is None or (not value and name in (_POOL, *_OF_THE_FACTORY))
        if unset or name in _OF_THE_RUN or ("drop" in name and name.endswith("rate")):
            continue
        if name in _OF_THE_FACTORY:
            raise _refused(name, origin, "says how timm makes or loads a model")
        try:
            told[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            raise _refused(name, origin, "is no number, text or list of them") from None
    return told


def _refused(name: str, origin: str, why: str) -> ConfigError:
    return ConfigError(
        f"The model must be built as its weights were trained, but {origin} has {name}, which "
        f"{why}. Save the weights alone, with a config.json beside them whose model_args has what "
        "the model differs by, as text (`timm.models.save_for_hf(model, FOLDER, model_args={…})`)."
    )


def _other(model: str, told: dict[str, Any]) -> dict[str, Any]:
    """Without the pool that a model has anyway, which timm writes down of every one."""
    if _POOL not in told:
        return told
    others = {name: value for name, value in told.items() if name != _POOL}
    try:
        with torch.device("meta"):
            own = get_model_args(timm.create_model(current_name(model), **others)).get(_POOL)
    except Exception:  # timm cannot build it with the others, which its error says with them all
        return told
    return others if own == told[_POOL] else told
