"""The rows of `reproduce.py`: each compares a claim of the paper with what was measured here."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from reproduce_compress import in_turn, rival_rows
from reproduce_rivals import Bench, Trained, scaled_networks
from reproduce_run import Scale, run_donna

from donna_ray.config import RunConfig, SearchConfig
from donna_ray.finetune.assemble import choice_table, library_space, untrained
from donna_ray.library.quantised import libraries
from donna_ray.predictor.quality import kendall_tau
from donna_ray.predictor.step import predictor_step
from donna_ray.reference.build import build_reference
from donna_ray.reference.step import reference_step
from donna_ray.report.results import Results
from donna_ray.report.scenario import FrontPoint
from donna_ray.run.run import Run
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.front import nondominated
from donna_ray.search.exact.hypervolume import hypervolume, reference_point
from donna_ray.search.scenario import problem_of
from donna_ray.search.study.ledger import measured
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.space import encode
from donna_ray.training.loop import seeded

__all__ = ["ROWS", "Reproduction"]

LIMITS = (0.7, 0.5)  # of the reference's latency, for compress
MOST = 4000  # candidates of a search that trains each
POPULATION = 24
LENGTHS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 9, 12, 16)  # of a training from random weights

Row = dict[str, Any]


@dataclass(frozen=True)
class Reproduction:
    """What all rows are taken from.

    Attributes:
        folder: of all that is done.
        settings: of the first run.
        scale: how much work it is.
    """

    folder: Path
    settings: dict[str, Any]
    scale: Scale

    @property
    def config(self) -> RunConfig:
        """Of the first run."""
        return RunConfig.model_validate(self.settings)

    @cached_property
    def results(self) -> Results:
        """Of the first run, which is finished here."""
        return run_donna(self.settings, self.folder / "base")

    @cached_property
    def bench(self) -> Bench:
        """To train other networks on."""
        assert self.results
        return Bench.of_run(self.folder / "trained", self.config, self.folder / "base")

    def another(self, name: str, changes: dict[str, Any]) -> Results:
        """A run that takes over what the first one has finished, with other settings."""
        assert self.results
        target = self.folder / name
        if not target.exists():
            part = target.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.folder / "base", part)
            part.rename(target)
        return run_donna({**copy.deepcopy(self.settings), **changes}, target)

    def finetuned(self, results: Results, run: str, scenario: int = 0) -> list[Trained]:
        """The networks of a front that were finetuned."""
        points = results.scenarios[scenario].front
        return [
            Trained(point.id, point.model_dump(), self.folder / run / str(point.onnx))
            for point in points
            if point.onnx is not None
        ]


def _points(networks: Sequence[Trained], latency: dict[str, float]) -> np.ndarray:
    return np.array([[each.facts["test_accuracy"], latency[each.name]] for each in networks])


def _told(network: Trained, latency: dict[str, float]) -> Row:
    names = ("test_accuracy", "test_low", "test_high", "params", "macs")
    return {"name": network.name, "ms": latency[network.name]} | {
        name: network.facts[name] for name in names if name in network.facts
    }


def _along(points: np.ndarray, by: int, value: float) -> float | None:
    """The other figure of a front where one has a value, between its points.

    Beyond its end it is that of the network there which is better. None where none is as good.
    """
    front = points[nondominated(points[:, 0], points[:, 1:])]
    order = np.argsort(front[:, by])
    known, other = front[order, by], front[order, 1 - by]
    if (value > known[-1]) if by == 0 else (value < known[0]):
        return None
    return float(np.interp(value, known, other))


def scaled(world: Reproduction) -> Row:
    """Found networks against known ones, scaled: latency at equal accuracy, and the reverse."""
    bench, data = world.bench, world.results.reference
    own = world.finetuned(world.results, "base")
    recipe = world.config.finetune.model_copy(update={"epochs": world.scale.scaled_epochs})
    rivals = [
        bench.trained(name, make, recipe)
        for name, make in scaled_networks(data.classes, data.input[0])
    ]
    latency = in_turn({each.name: each.onnx for each in [*own, *rivals]})
    found = _points(own, latency)
    faster, better = [], []
    rival_points = _points(rivals, latency)
    for row in nondominated(rival_points[:, 0], rival_points[:, 1:]):
        accuracy, ms = rival_points[row]
        same_accuracy, same_ms = _along(found, 0, accuracy), _along(found, 1, ms)
        faster += [] if same_accuracy is None else [1 - same_accuracy / ms]
        better += [] if same_ms is None else [same_ms - accuracy]
    return {
        "found": [_told(each, latency) for each in own],
        "scaled": [_told(each, latency) for each in rivals],
        "faster_at_equal_accuracy": faster,
        "more_accurate_at_equal_latency": better,
    }


def tau(world: Reproduction) -> Row:
    """Ranking of held-out networks that are finetuned to the end, beside baselines."""
    space, tables = _library(world)
    chosen = space.sample(world.scale.held_out, world.config.seed + 11)
    named = {"architectures": ["-".join(map(str, each)) for each in chosen]}
    recipe = world.settings["finetune"] | named
    results = world.another("held-out", {"finetune": recipe})
    scenario = results.scenarios[0]
    wanted = {space.id_of(each): each for each in chosen}
    points = [each for each in [*scenario.front, *scenario.asked] if each.id in wanted]
    rows = encode([wanted[each.id] for each in points], tables)
    figures = {
        "predictor": np.array([each.raw_accuracy for each in points]),
        "sum of NSR": -rows.sum(axis=1),
        "params": np.array([float(each.params) for each in points]),
        "MACs": np.array([float(each.macs) for each in points]),
    }
    validation = np.array([float(each.accuracy or 0) for each in points])
    test = np.array([float(each.test_accuracy or 0) for each in points])
    accuracy = (validation + test) / 2  # of as many images each
    return {
        "networks": len(points),
        "accuracies": [float(accuracy.min()), float(accuracy.max())],
        "tau": {name: kendall_tau(each, accuracy, 0) for name, each in figures.items()},
        "noise_floor": kendall_tau(validation, test, 0),
    }


def _library(world: Reproduction) -> Any:
    assert world.results
    with Run(world.config, world.folder / "base") as run:
        library = libraries(run, reference_step(run))["fp32"]
    return library_space(library), choice_table(library, "nsr")


def epochs(world: Reproduction) -> Row:
    """How much longer a network trains from random weights to be as accurate as from blocks."""
    recipe, bench = world.config.finetune, world.bench
    space, _ = _library(world)
    points = [each for each in world.results.scenarios[0].front if each.onnx is not None]
    rows = []
    for point in points[:: max(1, len(points) // world.scale.scratch)][: world.scale.scratch]:
        specs = space.specs(tuple(point.architecture))

        def fresh(specs: Any = specs) -> Any:
            with seeded(world.config.seed):
                reference, _ = build_reference(world.config, load_weights=False)
            return untrained(reference, specs)

        tried = {}
        for length in (each for each in LENGTHS if each <= world.scale.longest):
            longer = recipe.model_copy(update={"epochs": max(1, round(length * recipe.epochs))})
            made = bench.trained(f"{point.id} from random weights", fresh, longer)
            tried[length] = made.facts["test_accuracy"]
            if tried[length] >= (point.test_accuracy or 0):
                break
        reached = [each for each, value in tried.items() if value >= (point.test_accuracy or 0)]
        rows.append(
            {
                "id": point.id,
                "from_blocks": point.test_accuracy,
                "from_random_weights": tried,
                "times": reached[0] if reached else None,
            }
        )
    return {"epochs": recipe.epochs, "networks": rows, "longest": world.scale.longest}


def scenarios(world: Reproduction) -> Row:
    """Each scenario's finetuned networks under every scenario's latency, by test accuracy."""
    ways = {
        "cpu": ({"threads": 1}, "onnx"),
        "cpu-int8": ({"threads": 1}, "int8"),
        "cpu-two-threads": ({"threads": 2}, "onnx"),
    }
    own = {
        each.name: [point for point in each.front if point.onnx is not None]
        for each in world.results.scenarios
        if each.name in ways
    }
    every = {point.id: point for points in own.values() for point in points}
    shares: dict[str, dict[str, float]] = {}
    for cost, (settings, precision) in ways.items():
        known = {name: _figures(each, precision) for name, each in every.items()}
        files = {name: world.folder / "base" / file for name, (_, file) in known.items()}
        latency = in_turn(files, settings)
        rows = {name: (known[name][0], latency[name]) for name in every}
        corner = reference_point(np.array(list(rows.values())))
        volumes = {
            front: hypervolume(np.array([rows[point.id] for point in points]), corner)
            for front, points in own.items()
        }
        shares[cost] = {front: each / volumes[cost] for front, each in volumes.items()}
    return {"networks": {name: len(points) for name, points in own.items()}, "shares": shares}


def _figures(point: FrontPoint, precision: str) -> tuple[float, str]:
    if precision == "int8" and point.int8 is not None:
        return point.int8.test_accuracy, point.int8.onnx
    return float(point.test_accuracy or 0), str(point.onnx)


def extension(world: Reproduction) -> Row:
    """A family of blocks added to the finished run: what it costs, and the front after it."""
    options = {
        "kernel": [3],
        "ratio": [0.5, 1],
        "depth": [1, 2],
        "activation": ["relu"],
        "squeeze_excite": [False],
    }
    added = {"family": "residual_basic", "options": options}
    space = {"blocks": [*world.settings["space"]["blocks"], added]}
    results = world.another("extended", {"space": space})
    before, after = (
        np.array(
            [
                [each.predicted_accuracy, each.median_ms]
                for each in some.scenarios[0].search.measured
            ]
        )
        for some in (world.results, results)
    )
    corner = reference_point(np.concatenate([before, after]))
    assert results.library
    assert world.results.library
    family = added["family"]
    front = results.scenarios[0].front
    return {
        "blocks_added": results.library.size - world.results.library.size,
        "image_passes": {name: each.image_passes for name, each in results.cost.items()},
        "image_passes_before": {n: each.image_passes for n, each in world.results.cost.items()},
        "hypervolume_over_before": hypervolume(after, corner) / hypervolume(before, corner),
        "on_the_front": sum(any(b.family == family for b in each.blocks) for each in front),
        "front": len(front),
    }


def compress(world: Reproduction) -> Row:
    """`donna compress` at 0.7x and 0.5x measured latency, against what else prunes."""
    budgets = [f"{limit}x" for limit in LIMITS]
    results = world.another(
        "compressed",
        {
            "space": {"preset": "compress"},
            "search": {**world.settings["search"], "latency_limit": f"{max(LIMITS) + 0.05}x"},
            "finetune": {**world.settings["finetune"], "budgets": budgets},
            "scenarios": [],
        },
    )
    own = world.finetuned(results, "compressed")
    rivals = list(rival_rows(world.bench, world.config, LIMITS))
    latency = in_turn({each.name: each.onnx for each in [*own, *rivals]})
    reference = results.scenarios[0].reference_latency.median_ms
    return {
        "reference": results.reference.model_dump(),
        "reference_ms": reference,
        "compress": [_told(each, latency) for each in own],
        "rivals": [_told(each, latency) for each in rivals],
        "image_passes": {name: each.image_passes for name, each in results.cost.items()},
    }


def cost(world: Reproduction) -> Row:
    """Image passes to a front, against searches that train every candidate for a while.

    These are told the predicted accuracy and the latency by a model of what was measured, both
    without noise; a candidate costs them as much as a sample of the predictor.
    """
    results = world.results
    assert results.predictor
    sample = results.cost["predictor"].image_passes / results.predictor.samples
    ours = results.cost["library"].image_passes + results.cost["predictor"].image_passes
    problem, law = _law(world)
    points = law([tuple(each.architecture) for each in results.scenarios[0].front])
    corner = reference_point(points)
    wanted = hypervolume(points, corner)
    needed = {
        name: _needed(problem, law, ask, corner, wanted)
        for name, ask in (("nsga2", _by_nsga2), ("random", _at_random))
    }
    return {
        "image_passes": ours,
        "candidate": sample,
        "candidates_needed": needed,
        "times_cheaper": {
            name: {str(n): n * count * sample / ours for n in (1, 4, 10)}
            for name, count in needed.items()
            if count is not None
        },
        "most": MOST,
    }


Law = Callable[[Sequence[tuple[int, ...]]], np.ndarray]


def _law(world: Reproduction) -> tuple[SearchProblem, Law]:
    with Run(world.config, world.folder / "base") as run:
        reference = reference_step(run)
        library = libraries(run, reference)["fp32"]
        predictor = predictor_step(run, reference, library)
    problem = problem_of(SearchConfig(), world.bench.teacher, library, predictor)
    found = world.results.scenarios[0].search.measured
    surrogate = Surrogate(problem.features)
    rows = np.array([each.architecture for each in found])
    surrogate.fit(rows, np.array([each.median_ms for each in found]))

    def law(architectures: Sequence[tuple[int, ...]]) -> np.ndarray:
        chosen = np.array(architectures)
        latency = surrogate.mean(chosen)
        return np.column_stack([problem.accuracy.predict(chosen), latency])

    return problem, law


def _needed(
    problem: SearchProblem, law: Law, ask: Any, corner: np.ndarray, wanted: float
) -> int | None:
    """Candidates until their front is as good, looked at after each population."""
    found = np.empty((0, 2))
    for batch in ask(problem, law):
        found = np.concatenate([found, law(batch)])
        if hypervolume(found, corner) >= wanted:
            return len(found)
    return None


def _by_nsga2(problem: SearchProblem, law: Law) -> Iterable[Any]:
    config = SearchConfig(
        strategy="nsga2", evaluations=MOST, batch_size=POPULATION, population=POPULATION
    )
    with tempfile.TemporaryDirectory() as folder:
        search = Search(SearchSetup(problem, config, 0, Path(folder) / "journal"))
        while not search.finished:
            batch = search.ask(POPULATION)
            rows = zip(batch, law(batch), strict=True)
            search.tell(
                [(each, measured(accuracy, {"median_ms": ms})) for each, (accuracy, ms) in rows]
            )
            yield batch


def _at_random(problem: SearchProblem, law: Law) -> Iterable[Any]:
    every = problem.space.sample(MOST, 0)
    for start in range(0, len(every), POPULATION):
        yield every[start : start + POPULATION]


ROWS: dict[str, Callable[[Reproduction], Row]] = {
    each.__name__: each for each in (scaled, cost, tau, epochs, scenarios, extension, compress)
}
