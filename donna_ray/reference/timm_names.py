"""timm's names of models: `resnet18`, `resnet18.a1_in1k` with the tag of weights, older ones."""

from difflib import get_close_matches

import timm
from timm.models import get_arch_pretrained_cfgs, get_deprecated_models

from donna_ray.errors import ConfigError
from donna_ray.reference import own_models  # noqa: F401  registers them with timm

__all__ = ["check_name", "current_name"]

_SIMILAR = 8  # names in a message


def current_name(model: str) -> str:
    """timm's own name of what an older name of timm's stands for; any other as it is."""
    return get_deprecated_models().get(model) or model


def check_name(model: str) -> None:
    """Refuse a name that is not timm's, or that has a tag after it that is none of timm's.

    Raises:
        ConfigError: with similar ones.
    """
    name, dot, _ = model.partition(".")
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
    if dot and model not in tagged:
        raise ConfigError(
            f"reference.model must name weights that timm has, but there is no {model!r}. "
            + (f"It has {', '.join(tagged)}." if tagged else f"Of {name} it has none.")
        )
