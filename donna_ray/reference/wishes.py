"""What a configuration asks of its space, held against it before anything is trained."""

from collections.abc import Sequence

from donna_ray.complexity import complexity
from donna_ray.config import LibraryConfig, RunConfig
from donna_ray.errors import ConfigError
from donna_ray.reference.network import StagedNetwork
from donna_ray.space import SearchSpace, check_name
from donna_ray.space.check import Costs

__all__ = ["check_recipes", "check_wishes"]


def check_wishes(
    config: RunConfig, reference: StagedNetwork, space: SearchSpace, costs: Costs
) -> None:
    """Refuse what no network of the space can be.

    Args:
        config: of the run.
        reference: its weights do not matter.
        space: of the configuration.
        costs: of its blocks, of ``check_space``.

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
    _check_limits(config, reference, costs)


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


def _check_limits(config: RunConfig, reference: StagedNetwork, costs: Costs) -> None:
    outside = [
        complexity(reference.stem, reference.input_shape),
        complexity(reference.head, reference.shapes[-1].output),
    ]
    stages = zip(reference.stages, reference.shapes, strict=True)
    own = [*outside, *(complexity(stage, shape.input) for stage, shape in stages)]
    for scenario in config.all_scenarios():
        for name in ("params", "macs"):
            limit = scenario.search.known_limit(name, _sum(own, name))
            least = _sum(outside, name) + sum(min(each[name] for each in stage) for stage in costs)
            if limit is not None and least > limit:
                whose = "" if scenario.name == "default" else f" of {scenario.name!r}"
                raise ConfigError(
                    f"search.{name}_limit{whose} must be feasible, but is {limit:,.0f} and the "
                    f"smallest network has {least:,} {name}. Raise the limit to at least that, or "
                    "add cheaper blocks to the space."
                )


def _sum(parts: Sequence[dict[str, int]], name: str) -> int:
    return sum(part[name] for part in parts)
