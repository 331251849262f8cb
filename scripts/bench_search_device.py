"""The part of bench_search.py that measures on this CPU."""

import tempfile
from pathlib import Path

import numpy as np
import ray
from search_problem import corner_of, front_rows, hypervolume

from device_farm import Workload
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import DeviceConfig, RunConfig, SearchConfig
from donna_ray.latency.lowering import Lowering
from donna_ray.latency.starting import start_farm
from donna_ray.predictor.model import Floats
from donna_ray.reference.build import build_reference
from donna_ray.search.ask_tell import SearchSetup
from donna_ray.search.evaluators import FarmEvaluator
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.search.tuner import BatchSearcher, evaluate_with_tune
from donna_ray.space import Architecture, SearchSpace, build_space, check_space

MICRO = {
    "data": {"source": "digits", "image_size": 32},  # none is read: the weights are random
    "reference": {"model": "donna_micro"},
    "space": {"preset": "micro"},
}
STRATEGIES = ("frontier", "nsga2")
BATCH, POPULATION = 10, 24
LONG = {"blocks": 60, "runs_per_block": 10, "max_seconds": 30.0}


def compare_on_this_cpu(measurements: int, seeds: int) -> dict[str, float]:
    """The share of hypervolume of each strategy and seed; see ``bench_search``."""
    config = RunConfig.model_validate(MICRO)
    reference, _ = build_reference(config, load_weights=False)
    problem = made_up_problem(build_space(config.space, reference.shapes))
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lowering = Lowering(reference, folder / "graphs")
        for seed in range(seeds):
            fronts = {
                strategy: _front(problem, lowering, folder, strategy, measurements, seed)
                for strategy in STRATEGIES
            }
            figures |= _rated(problem, lowering, fronts, seed)
    return figures


def made_up_problem(space: SearchSpace) -> SearchProblem:
    """NSR by MACs, with luck of each block: as in a library, but made up."""
    costs = check_space(space)
    generator = np.random.default_rng(0)
    tables = {
        name: tuple(np.array([each[name] for each in stage], dtype=float) for stage in costs)
        for name in ("macs", "params")
    }
    gains = tuple(
        -0.05 * (stage.max() / stage) ** 0.5 * np.exp(generator.normal(0, 0.1, len(stage)))
        for stage in tables["macs"]
    )
    accuracy = AccuracyModel(0.9, gains)
    return SearchProblem(
        space, accuracy, {name: KnownCost(table) for name, table in tables.items()}
    )


def _front(
    problem: SearchProblem,
    lowering: Lowering,
    folder: Path,
    strategy: str,
    measurements: int,
    seed: int,
) -> list[Architecture]:
    """What a search holds to be the front. Each search measures anew: the cache is its own."""
    own = folder / f"{strategy}{seed}"
    config = SearchConfig(
        strategy=strategy, evaluations=measurements, batch_size=BATCH, population=POPULATION
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    farm = start_farm(DeviceConfig(), own / "measurements.sqlite")
    searcher = BatchSearcher(SearchSetup(problem, config, seed, own / "journal"))
    evaluate_with_tune({"": searcher}, {"": FarmEvaluator(problem, lowering, farm)}, own / "tune")
    farm.close()
    ray.shutdown()
    measured = searcher.search.ledger.measured
    values = np.array(list(measured.values()))
    return [list(measured)[row] for row in front_rows(values[:, 0], values[:, 1])]


def _rated(
    problem: SearchProblem,
    lowering: Lowering,
    fronts: dict[str, list[Architecture]],
    seed: int,
) -> dict[str, float]:
    """Each front's networks measured again, by a long protocol."""
    connector = OnnxRuntimeConnector("cpu", {})
    settings = connector.settings.model_copy(update=LONG)
    baseline = connector.calibrate()
    points: dict[str, Floats] = {}
    for strategy, front in fronts.items():
        latencies = []
        for architecture in front:
            model = lowering.model(problem.space.specs(architecture))
            handle = connector.prepare(Workload.from_onnx(model))
            latencies.append(connector.measure(handle, settings, baseline).median_ms)
        accuracies = problem.accuracy.predict_all(front)
        points[strategy] = np.column_stack([latencies, accuracies])
    connector.close()
    together = np.concatenate(list(points.values()))
    corner = corner_of(together[front_rows(together[:, 1], together[:, 0])])
    best = hypervolume(together, corner)
    return {
        f"device_{strategy}_hv_seed{seed}": hypervolume(rows, corner) / best
        for strategy, rows in points.items()
    }
