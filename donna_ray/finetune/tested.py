"""Final accuracies, on the test images, which are read here only, when all is trained."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from donna_ray.config import RunConfig
from donna_ray.data import Split, load_test
from donna_ray.finetune.assemble import untrained
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.worker import WorkerContext
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import right_answers
from donna_ray.workers.group import current_group
from donna_ray.workers.spread import Unit, spread

__all__ = ["Trained", "tested", "tested_models", "wilson"]

Trained = tuple[str, tuple[BlockSpec, ...]]
"""Key of its record, and its blocks; none of the reference's own stages."""


def tested(
    run: Run,
    reference: Artifact,
    store: RecordStore,
    networks: Sequence[Trained],
    workers_per_network: int,
) -> list[dict[str, Any]]:
    """Measure the reference and finetuned networks, on workers of the run.

    Args:
        run: for the configuration and the cluster.
        reference: of ``reference_step``.
        store: of the networks.
        networks: to measure after the reference.
        workers_per_network: as in the finetuning, so that its workers are kept.

    Returns:
        Of each, the reference first: `test_accuracy`, and `test_low` and `test_high`, its 95%
        interval (Wilson, binomial), and `test_images`, of how many.
    """
    work = _TestNetwork(run.config, reference, store)
    units = [Unit(None), *map(Unit, networks)]
    answers = spread(run, "test", "networks", units, work, workers_per_unit=workers_per_network)
    return [wilson(each["right"], each["images"]) for each in answers]


def tested_models(
    run: Run, reference: Artifact, store: RecordStore, keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure ONNX models of a store, likewise; the same of each."""
    work = _TestModel(run.config, reference, store)
    answers = spread(run, "test", "models", [Unit(key) for key in keys], work)
    return [wilson(each["right"], each["images"]) for each in answers]


def wilson(right: int, images: int) -> dict[str, Any]:
    """The share of images that a network is right on, with its 95% interval; see ``tested``."""
    from scipy.stats import binomtest  # a second that the workers do not need

    low, high = binomtest(right, images).proportion_ci(0.95, "wilson")
    return {
        "test_accuracy": right / images,
        "test_low": float(low),
        "test_high": float(high),
        "test_images": images,
    }


class _Test:
    """Something of a store, measured on a worker."""

    def __init__(self, config: RunConfig, reference: Artifact, store: RecordStore) -> None:
        self._config, self._artifact, self._store = config, reference, store
        self._context = WorkerContext(config, reference)

    @cached_property
    def _test(self) -> Split:
        return load_test(self._config.data, self._artifact.result["preprocessing"])


class _TestModel(_Test):
    """Measures one ONNX model."""

    def __call__(self, key: str) -> dict[str, Any]:
        network = OnnxNetwork(self._store.file(key, "onnx"))
        right, images = right_answers(network, self._test)
        return {"right": right, "images": images}


class _TestNetwork(_Test):
    """Measures one network, or the reference."""

    def __call__(self, trained: Trained | None) -> dict[str, Any]:
        if not current_group().first:
            return {}
        context = self._context
        network: StagedNetwork = context.reference
        if trained is not None:
            key, specs = trained
            network = untrained(network, specs) if specs else copy.deepcopy(network)
            network.load_state_dict(self._store.weights(key))
        right, images = right_answers(context.engine.place(network), self._test)
        return {"right": right, "images": images}
