"""A process that searches with a Tuner, on a farm, and can be killed: arguments FOLDER new|restore.

The device measures each model once in a while and writes the model's digest to FOLDER/measured.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray
from ray import tune

from donna_ray.config import DeviceConfig, SearchConfig, load_config, shipped_config
from donna_ray.latency.lowering import Lowering
from donna_ray.latency.starting import start_farm
from donna_ray.reference.build import build_reference
from donna_ray.search.ask_tell import SearchSetup
from donna_ray.search.evaluators import FarmEvaluator
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.study.problem import SearchProblem
from donna_ray.search.tuner import BatchSearcher, trainable_of
from donna_ray.space import build_space
from tests.search_problems import toy

EVALUATIONS = 24
SECONDS = 0.25  # a measurement


def setup_in(folder: Path) -> tuple[SearchSetup, Lowering]:
    """The demo's space, with a made-up accuracy."""
    config = load_config(shipped_config("demo"))
    reference, _ = build_reference(config, load_weights=False)
    space = build_space(config.space, reference.shapes)
    accuracy: AccuracyModel = toy(tuple(len(stage.choices) for stage in space.stages)).accuracy
    search = SearchConfig(evaluations=EVALUATIONS, batch_size=4)
    setup = SearchSetup(SearchProblem(space, accuracy), search, 0, folder / "study.journal")
    return setup, Lowering(reference, folder / "graphs")


def main(folder: Path, *, restore: bool) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    setup, lowering = setup_in(folder)
    settings = {"seconds_per_measurement": SECONDS}
    device = DeviceConfig(connector="simulated", settings=settings)
    farm = start_farm(device, folder / "measurements.sqlite")
    trainable = trainable_of(FarmEvaluator(setup.problem, lowering, farm))
    experiment = folder / "tune" / "search"
    if restore:
        tuner = tune.Tuner.restore(str(experiment), trainable=trainable)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=BatchSearcher(setup),
                num_samples=-1,
                max_concurrent_trials=2,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=str(experiment.parent), verbose=0
            ),
        )
    results = tuner.fit()
    assert not results.errors, results.errors
    print("leases", sum(row["leases"] for row in farm._farm.status()))
    farm.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), restore=sys.argv[2] == "restore")
