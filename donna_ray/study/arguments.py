"""Numbers and recipes that a person gives to a study, checked in its own words."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from donna_ray.config import FinetuneRecipe, LibraryConfig, section_of
from donna_ray.config.values import Section
from donna_ray.errors import ConfigError

__all__ = ["Numbers", "distillation_recipe", "finetuning_recipe", "numbers"]

_OF_BOTH = ("epochs", "learning_rate", "weight_decay", "precision")
_OF_BLOCKS = (*_OF_BOTH, "recipes")
_OF_NETWORKS = (*_OF_BOTH, "schedule", "ema_decay", "patience")
_OF_LOADERS = ("batch_size", "learning_rate_batch")


class Numbers(Section):
    """Those that are no part of a recipe."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    samples: Annotated[int, Field(ge=6)] = 12
    evaluations: PositiveInt = 60
    limit_ms: PositiveFloat | None = None


class _Distillation(LibraryConfig):
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class _Finetuning(FinetuneRecipe):
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


def numbers(**given: Any) -> Numbers:
    """Some of them, checked.

    Raises:
        ConfigError: one breaks its rule.
    """
    return section_of(Numbers, _plain(given))


def distillation_recipe(given: Mapping[str, Any]) -> LibraryConfig:
    """How blocks are trained.

    Raises:
        ConfigError: a key has no effect here, or a value breaks its rule.
    """
    _check_keys("distil", _OF_BLOCKS, given)
    return section_of(_Distillation, _plain(given))


def finetuning_recipe(given: Mapping[str, Any]) -> FinetuneRecipe:
    """How networks are trained.

    Raises:
        ConfigError: a key has no effect here, or a value breaks its rule.
    """
    _check_keys("fit` and `finetune", _OF_NETWORKS, given)
    return section_of(_Finetuning, _plain(given))


def _check_keys(calls: str, known: Sequence[str], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            why = " (the DataLoader decides how large a batch is)" if name in _OF_LOADERS else ""
            raise ConfigError(
                f"A recipe of `{calls}` must have keys of {', '.join(known)}, but has "
                f"{name!r}{why}. Take it out."
            )


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of numpy are numbers."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in given.items()
    }
