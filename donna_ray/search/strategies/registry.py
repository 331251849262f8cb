"""Strategies by name: those of this package, and those that installed packages register."""

import importlib
from collections.abc import Mapping
from typing import Any

from device_farm.plugins import plugin, plugin_names
from donna_ray.config import SearchConfig
from donna_ray.errors import ConfigError
from donna_ray.search.strategies.contract import Strategy
from donna_ray.search.study.problem import SearchProblem

__all__ = ["check_strategy", "make_strategy", "strategy_names", "strategy_type"]

_GROUP = "donna_ray.strategies"
_BUILT_IN = {
    "frontier": "frontier:Frontier",
    "nsga2": "sampler:Nsga2",
    "nsga3": "sampler:Nsga3",
    "random": "sampler:Random",
    "tpe": "sampler:Tpe",
}


def strategy_names() -> list[str]:
    """All that `search.strategy` may be here."""
    return sorted({*_BUILT_IN, *plugin_names(_GROUP)})


def strategy_type(name: str) -> type[Strategy]:
    """The strategy of this name.

    Raises:
        ConfigError: none is known, several packages register it, or its package cannot be imported.
    """
    try:
        found = plugin(_GROUP, name, is_taken=name in _BUILT_IN)
    except ValueError as error:
        raise ConfigError(f"search.strategy: {error}.") from error
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        home = importlib.import_module(f"donna_ray.search.strategies.{module}")
        built_in: type[Strategy] = getattr(home, attribute)
        return built_in
    if found is None:
        raise ConfigError(
            f"search.strategy must be one of {', '.join(strategy_names())}, but is {name!r}. "
            f"Correct the name, or install the package that registers it in {_GROUP}."
        )
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ConfigError(
            f"search.strategy must name a subclass of donna_ray.Strategy, but {name!r} is "
            f"{found!r}. Correct the entry point of its package."
        )
    return found


def check_strategy(config: SearchConfig) -> None:
    """Refuse a strategy that cannot search as configured, before anything is computed for it.

    Raises:
        ConfigError: see ``strategy_type``; an option is not the strategy's, or it does not heed
            further objectives.
    """
    kind = strategy_type(config.strategy)
    kind.checked_options(_options(config, kind))
    if config.objectives and not kind.several_objectives:
        raise ConfigError(
            f"search.objectives must be empty for the strategy {config.strategy!r}, whose front is "
            f"of accuracy and latency, but are {config.objectives}. Set search.strategy to nsga3, "
            "or set a limit instead."
        )


def make_strategy(problem: SearchProblem, config: SearchConfig, seed: int) -> Strategy:
    """The strategy that a configuration names.

    Raises:
        ConfigError: see ``check_strategy``.
    """
    check_strategy(config)
    kind = strategy_type(config.strategy)
    return kind(problem, config.evaluations, seed, _options(config, kind))


def _options(config: SearchConfig, kind: type[Strategy]) -> Mapping[str, Any]:
    if config.strategy not in _BUILT_IN:
        return config.options
    if config.options:
        raise ConfigError(
            f"search.options must be empty for the strategy {config.strategy!r}, but has "
            f"{', '.join(config.options)}. Remove them: what it takes are keys of `search` itself."
        )
    return config.model_dump(include=set(kind.options_type.model_fields))
