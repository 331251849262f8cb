"""Creates the timm model that a configuration names, with the weights that it names."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import get_arch_pretrained_cfgs
from torch import nn

from donna_ray.config import ReferenceConfig
from donna_ray.errors import ConfigError
from donna_ray.reference import checkpoint
from donna_ray.reference import own_models as models

__all__ = ["create_timm_model", "model_arguments", "preprocessing_of"]

_OWN_MODELS = models.__all__  # importing them registers them with timm
_SOURCES = ("url", "hf_hub_id", "file", "state_dict")
_SIMILAR = 8  # names in a message
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def create_timm_model(
    config: ReferenceConfig,
    *,
    classes: int | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    load_weights: bool = True,
) -> nn.Module:
    """A timm model in eval mode.

    Args:
        config: its name and weights.
        classes: of its classifier; None is timm's default.
        channels: of an image; None is timm's default.
        image_size: height and width, for models that are built for one size; None is timm's.
        load_weights: load the pretrained weights or the checkpoint (nothing for `train`).

    Raises:
        ConfigError: timm does not know the model, or its weights cannot be had for these classes.
    """
    _check_name(config.model)
    arguments = model_arguments(config.model, classes, channels, image_size)
    model = _create(config.model, arguments)
    if config.weights == "pretrained":
        _check_pretrained(config, getattr(model, "pretrained_cfg", {}), classes)
    if not load_weights or config.weights == "train":
        return model.eval()
    try:
        if config.weights == "pretrained":
            model = timm.create_model(config.model, pretrained=True, **arguments)
        else:
            new_head = config.training is not None
            path = Path(config.weights)
            checkpoint.load_weights(model, config.model, path, new_head=new_head)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"reference.weights is {config.weights!r}, but these weights of {config.model} cannot "
            f"be had ({type(error).__name__}: {error}). Give a checkpoint file of the model, or "
            "'train' to train the reference on the data."
        ) from error
    return model.eval()


def preprocessing_of(
    model: nn.Module, channels: int | None, image_size: int | None
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
    size = (image_size, image_size) if image_size else tuple(own_size)
    resolved["input_size"] = (channels or own_channels, *size)
    return {key: resolved[key] for key in _PREPROCESSING}


def model_arguments(
    name: str, classes: int | None, channels: int | None, image_size: int | None
) -> dict[str, Any]:
    """What timm's factory is called with, but for the weights; None is timm's default."""
    known = {"num_classes": classes, "in_chans": channels}
    arguments: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if image_size and getattr(settings, "fixed_input_size", False):
        arguments["img_size"] = image_size
    return arguments


def _check_name(model: str) -> None:
    """The name is timm's, and so is the tag after it (`resnet18.a1_in1k`)."""
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        known = timm.list_models()
        similar = [*timm.list_models(f"{name}*"), *get_close_matches(name, known, _SIMILAR)]
        listed = ", ".join(dict.fromkeys(similar[:_SIMILAR]))
        raise ConfigError(
            f"reference.model must be one of timm's models, but is {model!r}. "
            + (f"Similar ones: {listed}. " if listed else "")
            + "`python -c 'import timm; print(timm.list_models())'` lists all."
        )
    tagged = [each for each in get_arch_pretrained_cfgs(name) if "." in each]
    if tag and model not in tagged:
        raise ConfigError(
            f"reference.model must name weights that timm has, but there is no {model!r}. "
            + (f"It has {', '.join(tagged)}." if tagged else f"Of {name} it has none.")
        )


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **arguments)
    except Exception as error:
        raise ConfigError(
            f"reference.model {name} must be a model that timm can build with {arguments}, but "
            f"timm raised {type(error).__name__}: {error}. Choose another model or image size."
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
