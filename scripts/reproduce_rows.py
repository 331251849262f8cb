"""The rows of `reproduce.py`: each compares a claim of the paper with what was measured here."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from reproduce_compress import LIMITS, compared, in_turn
from reproduce_cost import cost
from reproduce_rivals import Trained, finetuned, scaled_networks, told
from reproduce_run import Reproduction

from donna_ray.config import FinetuneRecipe
from donna_ray.finetune.assemble import choice_table, library_space, untrained
from donna_ray.library.quantised import libraries
from donna_ray.predictor.quality import kendall_tau
from donna_ray.reference.build import build_reference
from donna_ray.reference.step import reference_step
from donna_ray.report.scenario import FrontPoint
from donna_ray.run.run import Run
from donna_ray.search.exact.front import nondominated
from donna_ray.search.exact.hypervolume import hypervolume, reference_point
from donna_ray.space import encode
from donna_ray.training.loop import seeded

__all__ = ["ROWS"]

LENGTHS = (0.5, 1, 1.5, 2, 3, 4, 6, 9, 12, 16)  # of a training from random weights
TESTED = ("test_accuracy", "test_low", "test_high")

Row = dict[str, Any]


def _points(networks: Sequence[Trained], latency: dict[str, float]) -> np.ndarray:
    return np.array([[each.facts["test_accuracy"], latency[each.name]] for each in networks])


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
    own = finetuned(world.results, world.folder / "base")
    recipe = world.config.finetune.model_copy(update={"epochs": world.scale.scaled_epochs})
    rivals = bench.side_by_side(
        [
            partial(bench.trained, name, make, recipe)
            for name, make in scaled_networks(data.classes, data.input[0])
        ]
    )
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
        "found": [told(each, latency) for each in own],
        "scaled": [told(each, latency) for each in rivals],
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
    points = [each for each in world.results.scenarios[0].front if each.onnx is not None]
    chosen = points[:: max(1, len(points) // world.scale.scratch)][: world.scale.scratch]
    space, _ = _library(world)
    calls = [partial(_from_random, world, space, each) for each in chosen]
    rows = world.bench.side_by_side(calls)
    epochs = world.config.finetune.epochs
    return {"epochs": epochs, "networks": rows, "longest": world.scale.longest}


def _from_random(world: Reproduction, space: Any, point: FrontPoint) -> Row:
    """The shortest training that is enough, found as if a longer one never were worse."""
    recipe, specs = world.config.finetune, space.specs(tuple(point.architecture))
    name = f"{point.id} from random weights"
    lengths = [each for each in LENGTHS if each <= world.scale.longest]
    tried: dict[float, Row] = {}

    def fresh() -> Any:
        with seeded(world.config.seed):
            reference, _ = build_reference(world.config, load_weights=False)
        return untrained(reference, specs)

    def longer(length: float) -> FinetuneRecipe:
        return recipe.model_copy(update={"epochs": max(1, round(length * recipe.epochs))})

    def enough(length: float) -> bool:
        facts = world.bench.trained(name, fresh, longer(length)).facts
        tried[length] = {each: facts[each] for each in TESTED}
        return bool(tried[length]["test_accuracy"] >= (point.test_accuracy or 0))

    known = {
        index: enough(each)
        for index, each in enumerate(lengths)
        if world.bench.knows(name, longer(each))
    }
    low = 1 + max((index for index, yes in known.items() if not yes), default=-1)
    high = min((i for i, yes in known.items() if yes and i >= low), default=len(lengths))
    first = bisect_left(lengths, True, low, high, key=enough)
    return {
        "id": point.id,
        "from_blocks": {name: getattr(point, name) for name in TESTED},
        "from_random_weights": dict(sorted(tried.items())),
        "times": lengths[first] if first < len(lengths) else None,
    }


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
    for device, (settings, precision) in ways.items():
        known = {name: _figures(each, precision) for name, each in every.items()}
        files = {name: world.folder / "base" / file for name, (_, file) in known.items()}
        latency = in_turn(files, settings)
        rows = {name: (known[name][0], latency[name]) for name in every}
        corner = reference_point(np.array(list(rows.values())))
        volumes = {
            front: hypervolume(np.array([rows[point.id] for point in points]), corner)
            for front, points in own.items()
        }
        shares[device] = {front: each / volumes[device] for front, each in volumes.items()}
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
    once = {**world.settings["finetune"], "networks": 1}  # the front is a prediction before it
    results = world.another("extended", {"space": space, "scenarios": [], "finetune": once})
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
    return compared(world.bench, world.config, results, world.folder / "compressed", LIMITS)


ROWS: dict[str, Callable[[Reproduction], Row]] = {
    each.__name__: each for each in (scaled, cost, tau, epochs, scenarios, extension, compress)
}
