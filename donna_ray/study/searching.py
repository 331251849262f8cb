"""The front of a study: candidates asked for, measured, and the best of them."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from donna_ray.block_spec import BlockSpec
from donna_ray.complexity import complexity
from donna_ray.config import SearchConfig
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.predictor.model import AccuracyPredictor
from donna_ray.reference.network import StagedNetwork
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import nondominated
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.space import Architecture, SearchSpace
from donna_ray.study.distilled import Distilled
from donna_ray.study.functions import Measuring

__all__ = ["Candidate", "front_of", "measured_networks", "problem_of"]

_COSTS = ("params", "macs")


@dataclass(frozen=True)
class Candidate:
    """A network of the front.

    Attributes:
        architecture: the number of the block in each stage, when it was found.
        blocks: of each stage, in words.
        predicted: its score, by the predictor: after as short a finetuning as the samples had.
        latency_ms: measured.
        specs: of its blocks, by which a study finds them again.
    """

    architecture: Architecture
    blocks: tuple[str, ...]
    predicted: float
    latency_ms: float
    specs: tuple[BlockSpec, ...] = field(repr=False)

    def within(self, space: SearchSpace) -> Architecture:
        """The numbers of its blocks in a space, which may be a later one.

        Raises:
            ConfigError: one of them does not stand there.
        """
        try:
            pairs = zip(space.stages, self.specs, strict=True)
            return tuple(stage.choices.index(spec) for stage, spec in pairs)
        except ValueError:
            raise ConfigError(
                "A candidate must be of blocks that this study has, but one of "
                f"{' | '.join(self.blocks)} does not stand in its stage: it is of another space, "
                "or of blocks that failed since. Search again."
            ) from None


def problem_of(
    distilled: Distilled,
    space: SearchSpace,
    predictor: AccuracyPredictor,
    limit_ms: float | None,
) -> SearchProblem:
    """What is searched."""
    costs = [
        [complexity(each.block, stage.shape.input) for each in blocks]
        for blocks, stage in zip(distilled.blocks, space.stages, strict=True)
    ]
    known = {
        name: KnownCost(tuple(np.array([float(one[name]) for one in row]) for row in costs))
        for name in _COSTS
    }
    model = AccuracyModel.of(predictor, distilled.nsr)
    return SearchProblem(space, model, known, latency_limit_ms=limit_ms)


def measured_networks(
    problem: SearchProblem,
    evaluations: int,
    seed: int,
    latency: Callable[[StagedNetwork], float],
    network: Callable[[Architecture], StagedNetwork],
) -> Mapping[Architecture, tuple[float, ...]]:
    """Predicted score and latency of each network that a search measured.

    One that could not be measured is left out, and a warning says so.

    Raises:
        DonnaError: that was so for all.
    """
    config = SearchConfig(evaluations=min(evaluations, problem.space.size), batch_size=1)
    measuring = Measuring(latency)
    with TemporaryDirectory() as folder:
        search = Search(SearchSetup(problem, config, seed, Path(folder) / "journal"))
        while not search.finished:
            for each in search.ask(1):
                predicted = problem.accuracy.predict_all([each])[0]
                search.tell([(each, measuring.outcome(network(each), predicted))])
    found, asked = search.ledger.measured, search.done
    if (lost := asked - len(found)) == 0:
        return found
    cause = search.broken or list(search.ledger.failed.values())[-1]
    if not found:
        raise DonnaError(
            f"A network of the study must be measured by `latency`, but of {asked} none could be. "
            f"The last cause: {cause}. Mend `latency`, or its device."
        ) from measuring.error
    warnings.warn(
        f"{lost} of {asked} networks could not be measured and are left out. The last cause: "
        f"{cause}",
        stacklevel=3,
    )
    return found


def front_of(
    values: Mapping[Architecture, tuple[float, ...]], space: SearchSpace, limit_ms: float | None
) -> list[Candidate]:
    """Those of measured networks that keep the limit and no other is better than.

    Raises:
        DonnaError: none keeps it.
    """
    kept = {a: v for a, v in values.items() if limit_ms is None or v[1] <= limit_ms}
    if not kept:
        raise DonnaError(
            f"limit_ms must be feasible, but is {limit_ms:g} and the fastest of {len(values)} "
            f"networks takes {min(v[1] for v in values.values()):.4g} ms. Raise it."
        )
    architectures, points = list(kept), np.array(list(kept.values()))
    return [
        _candidate(architectures[row], space, *points[row])
        for row in nondominated(points[:, 0], points[:, 1:])
    ]


def _candidate(
    architecture: Architecture, space: SearchSpace, predicted: float, ms: float
) -> Candidate:
    specs = tuple(space.specs(architecture))
    words = tuple(map(str, specs))
    return Candidate(architecture, words, min(max(float(predicted), 0.0), 1.0), float(ms), specs)
