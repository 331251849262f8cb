"""How few measurements the search takes, and how little it costs beside them.

On the made-up problem of `search_problem.py` (5 stages of 384 blocks, a device that is not
additive, 2% noise): hypervolume of the candidates as they truly are, in parts of that of the true
front, the median of 5 seeds. Prints a table and, last, one JSON line.

frontier_hv_260   by `frontier` after 260 measurements; likewise 500
heldout_frontier_hv_260     the same on laws that nothing was chosen by: two more draws of the law,
                            and a harder one of another form; the median of 3, (least) the worst;
                            likewise 500
nsga2_hv_1000     by Optuna's NSGA-II with a population of 50; likewise 500 and 3000
pymoo_hv_1000     by pymoo's, likewise
device_overhead   time of a search by `frontier` over that of 4 devices that take 0.2 s each and
                  never wait, less 1; through Ray Tune, batches of 20; 0 is the floor
tune_candidates_per_s       by `nsga2` through Ray Tune at no cost, batches of 50
inprocess_candidates_per_s  the same without Ray
tune_fixed_s                Tune's start and end, which the two figures above leave out: they are
                            from the first batch's result to the last one's
exact_front_20x1000_s       of 20 stages of 1,000 blocks; likewise 5 of 384, in ms

    python scripts/bench_search.py
    python scripts/bench_search.py --laws
    python scripts/bench_search.py --tables cells.csv [--strategy NAME]
    python scripts/bench_search.py --device [--measurements 150] [--seeds 3]

With --laws: `frontier` and `nsga2` (population 24) on each law of `search_problem.py`: the median
of 3 seeds after 60, 130, 260 and 500 measurements. With --tables: the same on cells that were
measured on a phone and a GPU, with an accuracy that is made up (some 20 s of CPU). With --strategy,
which may be given several times: these in place of the two, also those of installed packages.

With --device: frontier and nsga2 on this CPU, with the preset `micro` and a made-up accuracy, which
rises with a block's MACs; the networks of both fronts are measured again by a long protocol, and
the hypervolume of each is told in parts of that of both together.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from bench_search_device import compare_on_this_cpu
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PolynomialMutation
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize
from rich.console import Console
from rich.table import Table
from search_problem import (
    FORMS,
    SyntheticProblem,
    TabulatedProblem,
    corner_of,
    hypervolume,
    make_form,
    make_other_problem,
    make_problem,
    read_cells,
    true_front,
)

from donna_ray.config import SearchConfig
from donna_ray.predictor.model import Floats
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.front import Indices, exact_front
from donna_ray.search.strategies.registry import strategy_names
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.search.tuner import BatchSearcher, evaluate_with_tune

SEEDS = 5
POPULATION = 50
DEVICES, SECONDS, BATCH, MEASURED = 4, 0.2, 20, 400
CHEAP, CHEAP_BATCH = 6000, 50
BUDGETS = (60, 130, 260, 500)
MEASURED_ON = ("pixel3_ms", "titan_rtx_ms")

Law = SyntheticProblem | TabulatedProblem


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", action="store_true")
    parser.add_argument("--laws", action="store_true")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--strategy", action="append", choices=strategy_names())
    parser.add_argument("--measurements", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.device:
        figures = compare_on_this_cpu(arguments.measurements, arguments.seeds)
    elif arguments.laws or arguments.tables:
        laws = made_laws() if arguments.laws else {}
        if arguments.tables:
            laws |= {name: read_cells(arguments.tables, name) for name in MEASURED_ON}
        with tempfile.TemporaryDirectory() as folder:
            strategies = arguments.strategy or ["frontier", "nsga2"]
            figures = quality_by_law(laws, strategies, Path(folder), arguments.seeds)
    else:
        law = make_problem(seed=0)
        with tempfile.TemporaryDirectory() as folder:
            figures = quality(law, Path(folder)) | held_out_quality(Path(folder))
            figures |= speed(law, Path(folder))
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


def problem_of(law: Law) -> SearchProblem:
    return SearchProblem(law.space, law.accuracy, {"macs": KnownCost(tuple(law.macs))})


def shares_of(law: Law) -> Callable[[Indices, Sequence[int]], dict[int, float]]:
    """Hypervolume of the first candidates as they truly are, in parts of that of the true front."""
    front = true_front(law)
    corner = corner_of(front)
    best = hypervolume(front, corner)

    def shares(rows: Indices, sizes: Sequence[int]) -> dict[int, float]:
        points = np.column_stack([law.latency(rows), law.accuracy.predict(rows)])
        return {size: hypervolume(points[:size], corner) / best for size in sizes}

    return shares


def held_out_quality(folder: Path) -> dict[str, float]:
    laws = [make_problem(seed=1), make_problem(seed=2), make_other_problem(seed=3)]
    found = []
    for number, law in enumerate(laws):
        rows = searched(law, folder / f"law{number}", "frontier", 500, seed=0)
        found.append(shares_of(law)(rows, (260, 500)))
    figures = {}
    for size in (260, 500):
        shares = [each[size] for each in found]
        figures[f"heldout_frontier_hv_{size}"] = statistics.median(shares)
        figures[f"heldout_frontier_least_hv_{size}"] = min(shares)
    return figures


def quality(law: SyntheticProblem, folder: Path) -> dict[str, float]:
    shares = shares_of(law)
    methods: dict[str, tuple[Callable[[int], Indices], tuple[int, ...]]] = {
        "frontier": (lambda seed: searched(law, folder, "frontier", 500, seed), (260, 500)),
        "nsga2": (lambda seed: searched(law, folder, "nsga2", 3000, seed), (500, 1000, 3000)),
        "pymoo": (lambda seed: pymoo_candidates(law, 3000, seed), (1000, 3000)),
    }
    figures = {}
    for name, (search, sizes) in methods.items():
        found = [shares(search(seed), sizes) for seed in range(SEEDS)]
        for size in sizes:
            figures[f"{name}_hv_{size}"] = statistics.median(each[size] for each in found)
    return figures


def made_laws() -> dict[str, Law]:
    laws: dict[str, Law] = {"made": make_problem(0), "draw": make_problem(1)}
    laws |= {"other": make_other_problem(3)}
    return laws | {form: make_form(form, number) for number, form in enumerate(FORMS, 10)}


def quality_by_law(
    laws: dict[str, Law], strategies: Sequence[str], folder: Path, seeds: int
) -> dict[str, float]:
    figures = {}
    for name, law in laws.items():
        shares = shares_of(law)
        for strategy in strategies:
            own = folder / name / strategy
            found = [
                shares(searched(law, own, strategy, BUDGETS[-1], seed, population=24), BUDGETS)
                for seed in range(seeds)
            ]
            for size in BUDGETS:
                figures[f"{name}_{strategy}_hv_{size}"] = statistics.median(x[size] for x in found)
    return figures


def searched(
    law: Law,
    folder: Path,
    strategy: str,
    evaluations: int,
    seed: int,
    population: int = POPULATION,
) -> Indices:
    """Candidates in the order of measurement; two batches of 20 are in flight at any time."""
    config = SearchConfig(strategy=strategy, evaluations=evaluations, population=population)
    search = Search(SearchSetup(problem_of(law), config, seed, folder / f"{strategy}{seed}"))
    generator = np.random.default_rng(seed)
    waiting = [search.ask(BATCH), search.ask(BATCH)]
    while waiting:
        batch = waiting.pop(0)
        search.tell(zip(batch, outcomes(law, batch, generator), strict=True))
        if new := search.ask(BATCH):
            waiting.append(new)
    return np.array(list(search.ledger.measured))


def outcomes(
    law: Law, batch: Sequence[Any], generator: np.random.Generator
) -> list[dict[str, Any]]:
    rows = np.array(batch)
    values = np.column_stack([law.accuracy.predict(rows), law.measure(rows, generator)])
    return [{"values": each} for each in values.tolist()]


def pymoo_candidates(law: SyntheticProblem, evaluations: int, seed: int) -> Indices:
    generator, asked = np.random.default_rng(seed), []

    class Networks(Problem):
        def __init__(self) -> None:
            stages = law.space.stages
            last = len(stages[0].choices) - 1
            super().__init__(n_var=len(stages), n_obj=2, xl=0, xu=last, vtype=int)

        def _evaluate(self, x: Floats, out: dict[str, Any], *_: Any, **__: Any) -> None:
            rows = x.astype(int)
            asked.append(rows)
            out["F"] = np.column_stack([-law.accuracy.predict(rows), law.measure(rows, generator)])

    mutation = PolynomialMutation(prob=1 / 5, eta=1.0, vtype=float, repair=RoundingRepair())
    method = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=UniformCrossover(),
        mutation=mutation,
        eliminate_duplicates=True,
    )
    minimize(Networks(), method, ("n_eval", evaluations), seed=seed)
    return np.concatenate(asked)


def speed(law: SyntheticProblem, folder: Path) -> dict[str, float]:
    figures = {"inprocess_candidates_per_s": inprocess(law, folder)}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    figures |= tuned(law, folder)
    figures |= {"device_overhead": overhead(law, folder)}
    ray.shutdown()
    return figures | {
        "exact_front_5x384_ms": 1e3 * exact_seconds(5, 384),
        "exact_front_20x1000_s": exact_seconds(20, 1000),
    }


class Cheap:
    """Evaluates at no cost, in the actors of Tune."""

    def __init__(self, law: SyntheticProblem) -> None:
        self._law = law

    def evaluate(self, batch: Sequence[Any]) -> list[dict[str, Any]]:
        return outcomes(self._law, batch, np.random.default_rng(0))


class Devices:
    """Evaluates on pretended devices: a shared queue, a fixed time each."""

    def __init__(self, law: SyntheticProblem, farm: Any) -> None:
        self._law, self._farm = law, farm

    def evaluate(self, batch: Sequence[Any]) -> list[dict[str, Any]]:
        ray.get([self._farm.measure.remote() for _ in batch])
        return outcomes(self._law, batch, np.random.default_rng(0))


class Sleeping:
    """`DEVICES` devices, each of which takes `SECONDS`."""

    def measure(self) -> None:
        time.sleep(SECONDS)


def inprocess(law: SyntheticProblem, folder: Path) -> float:
    config = cheap_config()
    search = Search(SearchSetup(problem_of(law), config, 0, folder / "inprocess"))
    evaluator = Cheap(law)
    started = time.perf_counter()
    while batch := search.ask(config.batch_size):
        search.tell(zip(batch, evaluator.evaluate(batch), strict=True))
    return CHEAP / (time.perf_counter() - started)


def cheap_config() -> SearchConfig:
    return SearchConfig(
        strategy="nsga2", evaluations=CHEAP, batch_size=CHEAP_BATCH, population=POPULATION
    )


def tuned(law: SyntheticProblem, folder: Path) -> dict[str, float]:
    setup = SearchSetup(problem_of(law), cheap_config(), 0, folder / "tuned")
    started = time.perf_counter()
    seconds = tune_seconds(setup, Cheap(law), folder)
    return {
        "tune_candidates_per_s": (CHEAP - CHEAP_BATCH) / seconds,
        "tune_fixed_s": time.perf_counter() - started - seconds,
    }


def overhead(law: SyntheticProblem, folder: Path) -> float:
    config = SearchConfig(evaluations=MEASURED, batch_size=BATCH)
    farm = ray.remote(Sleeping).options(max_concurrency=DEVICES, num_cpus=0).remote()
    setup = SearchSetup(problem_of(law), config, 0, folder / "overhead")
    seconds = tune_seconds(setup, Devices(law, farm), folder)
    ray.kill(farm)
    return seconds / ((MEASURED - BATCH) * SECONDS / DEVICES) - 1


def tune_seconds(setup: SearchSetup, evaluator: Any, folder: Path) -> float:
    """From the first batch's result to the last one's."""
    searcher = BatchSearcher(setup)
    evaluate_with_tune({"": searcher}, {"": evaluator}, folder / "tune")
    ends = [trial.datetime_complete for trial in searcher.search.ledger.trials_measured()]
    return (max(ends) - min(ends)).total_seconds()


def exact_seconds(stages: int, choices: int) -> float:
    """The best of 5, with costs of every size, and gains that grow with them but for luck."""
    generator = np.random.default_rng(0)
    costs = [np.exp(generator.normal(0, 1, (choices, 1))) for _ in range(stages)]
    gains = [np.log(cost[:, 0]) + generator.normal(0, 0.3, choices) for cost in costs]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        exact_front(gains, costs)
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
