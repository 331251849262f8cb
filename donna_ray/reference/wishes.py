"""What a configuration asks of its space, held against it before anything is trained."""

from collections.abc import Callable, Sequence

from donna_ray.complexity import complexity
from donna_ray.config import LibraryConfig, RunConfig, SearchConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import SearchSpace, check_name
from donna_ray.space.check import Costs

__all__ = ["check_recipes", "check_wishes"]


def check_wishes(
    config: RunConfig,
    reference: StagedNetwork,
    space: SearchSpace,
    costs: Costs,
    say: Callable[[str], None],
) -> None:
    """Refuse what no network of the space can be.

    Args:
        config: of the run.
        reference: its weights do not matter.
        space: of the configuration.
        costs: of its blocks, of ``check_space``.
        say: called with a line for what is only doubted.

    Raises:
        ConfigError: too few networks, an unknown family or network, or a limit that none keeps.
    """
    samples = config.predictor.samples
    if space.size < samples:
        raise ConfigError(
            f"predictor.samples must be at most the networks of the space, but is {samples} of "
            f"{space.size}. Lower it, or add blocks."
        )
    check_recipes("library.recipes", config.library, space)
    for name in config.finetune.architectures:
        check_name(name, space)
    _check_limits(config, reference, costs, say)


def check_recipes(key: str, library: LibraryConfig, space: SearchSpace) -> None:
    """Refuse a recipe of a family that no block is of: it has no effect.

    Args:
        key: under which the recipes are given.
        library: has them.
        space: of the blocks.

    Raises:
        ConfigError: as said.
    """
    families = sorted({spec.family for stage in space.stages for spec in stage.choices})
    for family in library.recipes:
        if family not in families:
            raise ConfigError(
                f"{key} must be of families of the space ({', '.join(families)}), but has "
                f"{family!r}. Correct the name, or take it out."
            )


def _check_limits(
    config: RunConfig, reference: StagedNetwork, costs: Costs, say: Callable[[str], None]
) -> None:
    outside = [
        complexity(reference.stem, reference.input_shape),
        complexity(reference.head, reference.shapes[-1].output),
    ]
    stages = zip(reference.stages, reference.shapes, strict=True)
    own = [*outside, *(complexity(stage, shape.input) for stage, shape in stages)]
    least = {
        name: _sum(outside, name) + sum(min(each[name] for each in stage) for stage in costs)
        for name in ("params", "macs")
    }
    for scenario in config.all_scenarios():
        whose = "" if scenario.name == "default" else f" of {scenario.name!r}"
        for name in ("params", "macs"):
            limit = scenario.search.known_limit(name, _sum(own, name))
            if limit is not None and least[name] > limit:
                raise ConfigError(
                    f"search.{name}_limit{whose} must be feasible, but is {limit:,.0f} and the "
                    f"smallest network has {least[name]:,} {name}. Raise the limit to at least "
                    "that, or add cheaper blocks to the space."
                )
        if scenario.search.in_parts_of_reference():
            _doubt_latency(whose, scenario.search, least["macs"] / _sum(own, "macs"), say)


def _doubt_latency(
    whose: str, search: SearchConfig, least: float, say: Callable[[str], None]
) -> None:
    """Latency is no matter of MACs alone, so that a limit which these do not keep is only doubted.

    Args:
        whose: limit it is, in words.
        search: its limit is in parts of the reference's latency.
        least: MACs of the smallest network, in parts of the reference's.
    """
    share = search.latency_limit_ms(1.0)
    if share is not None and share < least:
        say(
            f"warning: search.latency_limit{whose} is {search.latency_limit}, but the smallest "
            f"network of the space has {least:.1%} of the reference's MACs, so that none may be so "
            "fast. Raise the limit, or add cheaper blocks to the space."
        )


def _sum(parts: Sequence[dict[str, int]], name: str) -> int:
    return sum(part[name] for part in parts)
