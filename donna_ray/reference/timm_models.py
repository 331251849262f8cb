"""Creates the timm model that a configuration names, with the weights that it names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import nn

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference import checkpoint
from donna_ray.reference.preparation import (
    BESIDE,
    preparation_beside,
    preparation_within,
    prepare_so,
)
from donna_ray.reference.timm_names import check_name, current_name
from donna_ray.reference.told_arguments import told_arguments

__all__ = ["create_timm_model", "model_arguments", "other_size", "preprocessing_of"]

_SOURCES = ("url", "hf_hub_id", "file", "state_dict")
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")

Size = int | tuple[int, int]
"""Of the side of an image, or its height and width."""


def create_timm_model(
    config: ReferenceConfig,
    *,
    classes: int | None = None,
    channels: int | None = None,
    image_size: Size | None = None,
    load_weights: bool = True,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm model in eval mode.

    Args:
        config: its name and weights.
        classes: of its classifier; None is timm's default.
        channels: of an image; None is timm's default.
        image_size: height and width, for models that are built for one size; None is what the
            `config.json` beside a file of weights says, else timm's.
        load_weights: load the pretrained weights or the checkpoint (nothing for `train`).
        arguments: of ``told_arguments``; None asks what lies beside the weights or is in them.

    Raises:
        ConfigError: timm does not know the model, cannot build it so, or its weights cannot be had
            for these classes.
    """
    check_name(config.model)
    name, told = current_name(config.model), preparation_beside(config)
    size = image_size or other_size(name, told.get("input_size"))
    others = told_arguments(config, say=load_weights) if arguments is None else arguments
    known = {**others, **model_arguments(name, classes, channels, size)}
    model = _create(name, known, others)
    if config.weights == "pretrained":
        _check_pretrained(config, getattr(model, "pretrained_cfg", {}), classes)
    if load_weights and config.weights != "train":
        model = _with_weights(model, name, config, known)
        sides = preprocessing_of(model, channels, size)["input_size"][1:]
        prepare_so(model, preparation_within(config, sides), f"args of {config.weights}")
    prepare_so(model, told, Path(config.weights).with_name(BESIDE), say=load_weights)
    return model.eval()


def preprocessing_of(
    model: nn.Module, channels: int | None, image_size: Size | None
) -> dict[str, Any]:
    """timm's data configuration of a model: input_size, mean, std, interpolation, crop_pct and
    crop_mode.

    Args:
        model: of timm or of this package.
        channels: of an image; None is the model's own.
        image_size: height and width; None is the model's own.
    """
    resolved = resolve_data_config({}, model=model)
    own_channels, *own_size = resolved["input_size"]
    size = image_size or tuple(own_size)
    size = (size, size) if isinstance(size, int) else size
    resolved["input_size"] = (channels or own_channels, *size)
    return {key: resolved[key] for key in _PREPROCESSING}


def other_size(name: str, input_size: Sequence[int] | None) -> Size | None:
    """Height and width of images that are not of the size that timm has for a model, else None."""
    known = timm.get_pretrained_cfg(current_name(name), allow_unregistered=True)
    if not input_size or (known and tuple(known.input_size[1:]) == tuple(input_size[1:])):
        return None
    height, width = input_size[1:]
    return height if height == width else (height, width)


def model_arguments(
    name: str, classes: int | None, channels: int | None, image_size: Size | None
) -> dict[str, Any]:
    """What the images say that timm's factory is called with; None is timm's default."""
    known = {"num_classes": classes, "in_chans": channels}
    arguments: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
    settings = timm.get_pretrained_cfg(current_name(name), allow_unregistered=True)
    if image_size and getattr(settings, "fixed_input_size", False):
        arguments["img_size"] = image_size
    return arguments


def _with_weights(
    model: nn.Module, name: str, config: ReferenceConfig, arguments: dict[str, Any]
) -> nn.Module:
    try:
        if config.weights == "pretrained":
            return timm.create_model(name, pretrained=True, **arguments)
        new_head, path = config.training is not None, Path(config.weights)
        checkpoint.load_weights(model, name, path, new_head=new_head)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"reference.weights is {config.weights!r}, but these weights of {config.model} cannot "
            f"be had ({type(error).__name__}: {error}). Give a checkpoint file of the model, or "
            "'train' to train the reference on the data."
        ) from error
    return model


def _create(name: str, arguments: dict[str, Any], told: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **arguments)
    except Exception as error:
        remedy = "Choose another model or image size."
        if told:
            remedy = f"What lies beside its weights or is in them says {dict(told)}: correct that."
        raise ConfigError(
            f"reference.model {name} must be a model that timm can build with {arguments}, but "
            f"timm raised {type(error).__name__}: {error}. {remedy}"
        ) from error


def _check_pretrained(config: ReferenceConfig, settings: Any, classes: int | None) -> None:
    """timm warns only and leaves weights random where it has none, or of another class count."""
    if not any(settings.get(source) for source in _SOURCES):
        raise ConfigError(
            f"reference.weights is 'pretrained', but there are no pretrained weights of "
            f"{config.model}. Give a checkpoint file, or 'train' to train it on the data."
        )
    if classes not in (None, settings["num_classes"]) and config.training is None:
        whose = f"The pretrained {config.model}"
        raise ConfigError(checkpoint.other_classes(whose, settings["num_classes"], classes))
