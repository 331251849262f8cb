"""How often the network that seems to keep a limit breaks it, by how the front was measured.

After a search by `frontier`, 40 limits along the true front of its candidates; for each the most
accurate network that seems to keep it:

    single      by the search's single measurements
    posterior   by the mean of the surrogate's posterior of these
    again       by what is measured again of it (`donna_ray/search/verify.py`), with 95% confidence

broken     share of the limits that this network truly breaks by more than 1%
lost       accuracy in points below the best candidate that truly keeps the limit, mean
none       share of the limits that nothing seems to keep
cost       measurements that measuring again took, in parts of the search's

Prints a table and, last, one JSON line. Each noise: the mean of the laws of `search_problem.py`
below and the seeds, with measurements that err normally.

    python scripts/bench_front.py
    python scripts/bench_front.py --device [--candidates 60]

With --device: one search on this CPU, with the preset `micro` and a made-up accuracy, which rises
with a block's MACs. True is then the mean of 8 more rounds of all networks that may be chosen, and
`precision_of_true` half its 95% interval in percent: part of what is broken is that noise.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from bench_search_device import MICRO, made_up_problem
from rich.console import Console
from rich.table import Table
from search_problem import make_form, make_problem

from device_farm import Workload
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import RunConfig, SearchConfig
from donna_ray.latency.figures import Latency, surely_ms
from donna_ray.latency.lowering import Lowering
from donna_ray.predictor.model import Floats
from donna_ray.reference.build import build_reference
from donna_ray.search.ask_tell import Search, SearchSetup
from donna_ray.search.exact.front import nondominated
from donna_ray.search.study.ledger import measured
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.search.surrogate.model import Surrogate
from donna_ray.search.verify import ROUNDS, contenders, repeated
from donna_ray.space import Architecture, build_space

LIMITS, TOLERATED = 40, 1.01
NOISES, SEEDS, CANDIDATES = (0.02, 0.03, 0.05), 3, 200
LAWS = ("chain", "pairs", "roofline", "product")
TRUE_ROUNDS, BATCH = 8, 10
WAYS = ("single", "posterior", "again")

Measure = Callable[[Architecture], Latency]
Seems = dict[Architecture, float]


def searched(problem: SearchProblem, measure: Measure, count: int, seed: int) -> Search:
    """A search of so many candidates, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        config = SearchConfig(evaluations=count, batch_size=BATCH)
        search = Search(SearchSetup(problem, config, seed, Path(folder) / "journal"))
        while not search.finished:
            batch = search.ask(BATCH)
            accuracies = problem.accuracy.predict_all(batch)
            pairs = zip(batch, accuracies, strict=True)
            search.tell([(each, measured(own, measure(each))) for each, own in pairs])
    return search


def seeming(search: Search, measure: Measure) -> tuple[dict[str, Seems], int]:
    """Milliseconds that networks seem to take, each way; and measurements that this took."""
    ledger = search.ledger
    rows = np.array(list(ledger.measured))
    single = {each: values[1] for each, values in ledger.measured.items()}
    surrogate = Surrogate(search.setup.problem.features)
    surrogate.fit(rows, np.array(list(single.values())))
    mean = surrogate.mean(rows)
    networks = contenders(search)
    rounds = [[measure(each) for each in networks] for _ in range(ROUNDS)]
    again = repeated(list(zip(*rounds, strict=True)))
    return {
        "single": single,
        "posterior": dict(zip(single, mean.tolist(), strict=True)),
        "again": dict(zip(networks, map(surely_ms, again), strict=True)),
    }, ROUNDS * (len(networks) + 1)  # and the reference


def best_within(limit: float, ms: Seems, accuracy: Seems) -> Architecture | None:
    """The most accurate network that takes no more, or seems to."""
    return max((each for each in ms if ms[each] <= limit), key=accuracy.__getitem__, default=None)


def limits_of(true: Seems, accuracy: Seems) -> Floats:
    """Along the front of these."""
    latency = np.array([true[each] for each in accuracy])
    front = latency[nondominated(np.array(list(accuracy.values())), latency[:, None])]
    return np.geomspace(front[0], front[-1], LIMITS)


def rated(limits: Iterable[float], seems: Seems, true: Seems, accuracy: Seems) -> list[float]:
    """Broken and none in percent, and what is lost in points."""
    broken, lost, none = [], [], []
    for limit in limits:
        chosen = best_within(limit, seems, accuracy)
        none.append(chosen is None)
        if chosen is not None:
            broken.append(true[chosen] > TOLERATED * limit)
            best = best_within(limit, true, accuracy)
            assert best is not None
            lost.append(accuracy[best] - accuracy[chosen])
    return [100 * float(np.mean(each)) for each in (broken, lost, none)]


def simulated(noise: float) -> dict[str, list[float]]:
    """Mean over laws and seeds: broken, lost and none of each way; and the cost in percent."""
    found = [_simulated_once(name, seed, noise) for name in LAWS for seed in range(SEEDS)]
    return {way: np.mean([each[way] for each in found], axis=0).tolist() for way in found[0]}


def _simulated_once(name: str, seed: int, noise: float) -> dict[str, list[float]]:
    law = make_problem(seed) if name == "chain" else make_form(name, seed)
    problem = SearchProblem(law.space, law.accuracy, {"macs": KnownCost(tuple(law.macs))})
    random = np.random.default_rng([seed, round(1000 * noise)])

    def measure(each: Architecture) -> Latency:
        return {"median_ms": float(law.latency(np.array([each]))[0] * random.normal(1, noise))}

    search = searched(problem, measure, CANDIDATES, seed)
    ways, count = seeming(search, measure)
    networks = list(search.ledger.measured)
    true = dict(zip(networks, law.latency(np.array(networks)).tolist(), strict=True))
    return _all_rated(search, ways, true, count)


def _all_rated(
    search: Search, ways: dict[str, Seems], true: Seems, count: int
) -> dict[str, list[float]]:
    measured_ones = search.ledger.measured
    accuracy = {each: measured_ones[each][0] for each in true}
    limits = limits_of(true, accuracy)
    known = {way: {each: ms for each, ms in ways[way].items() if each in true} for way in WAYS}
    found = {way: rated(limits, known[way], true, accuracy) for way in WAYS}
    return {**found, "cost": [100 * count / len(measured_ones)]}


def on_this_cpu(candidates: int) -> dict[str, list[float]]:
    """Likewise, of one search, by seconds of the device."""
    config = RunConfig.model_validate(MICRO)
    reference, _ = build_reference(config, load_weights=False)
    problem = made_up_problem(build_space(config.space, reference.shapes))
    connector = OnnxRuntimeConnector("cpu", {})
    baseline = connector.calibrate()
    with tempfile.TemporaryDirectory() as folder:
        lowering = Lowering(reference, Path(folder))

        def measure(each: Architecture) -> Latency:
            model = lowering.model(problem.space.specs(each))
            handle = connector.prepare(Workload.from_onnx(model))
            return connector.measure(handle, connector.settings, baseline).to_json()

        search = searched(problem, measure, candidates, 0)
        ways, count = seeming(search, measure)
        chosen = _near_the_front(search, ways)
        rounds = [[measure(each) for each in chosen] for _ in range(TRUE_ROUNDS)]
    connector.close()
    figures = repeated(list(zip(*rounds, strict=True)))
    true = {each: own["median_ms"] for each, own in zip(chosen, figures, strict=True)}
    precision = float(np.mean([own["ci_percent"] for own in figures]))
    return {**_all_rated(search, ways, true, count), "precision_of_true": [precision]}


def _near_the_front(search: Search, ways: dict[str, Seems]) -> list[Architecture]:
    """All that some way may choose."""
    accuracy = {each: values[0] for each, values in search.ledger.measured.items()}
    chosen: set[Architecture] = set()
    for seems in ways.values():
        networks = list(seems)
        latency = np.array([[seems[each]] for each in networks])
        rows = nondominated(np.array([accuracy[each] for each in networks]), latency)
        chosen |= {networks[row] for row in rows}
    return sorted(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AS_IT_IS)
    parser.add_argument("--device", action="store_true", help="measure on this CPU")
    parser.add_argument("--candidates", type=int, default=60, help="of the search on this CPU")
    words = parser.parse_args()
    if words.device:
        found = {"this CPU": on_this_cpu(words.candidates)}
    else:
        found = {f"noise {noise:.0%}": simulated(noise) for noise in NOISES}
    table = Table("", "way", "broken %", "lost", "none %", "cost %")
    for name, ways in found.items():
        for way in WAYS:
            cost = f"{ways['cost'][0]:.0f}" if way == "again" else ""
            broken, lost, none = ways[way]
            table.add_row(name, way, f"{broken:.1f}", f"{lost:.3f}", f"{none:.1f}", cost)
    Console().print(table)
    print(json.dumps(found))


_AS_IT_IS = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
