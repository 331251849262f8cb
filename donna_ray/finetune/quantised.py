"""Finetuned networks in int8: quantised after the training, measured, and kept as QDQ models.

They are not trained in int8: their weights are those of the finetuning, and the ranges of their
activations are measured on training images.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from donna_ray.config import RunConfig
from donna_ray.data import ImageData
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.tested import Trained
from donna_ray.latency.quantised import calibration_images, quantised_network
from donna_ray.library.quantised import calibration_facts
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, digest
from donna_ray.storage.records import Record, RecordStore
from donna_ray.training.loop import accuracy
from donna_ray.workers.spread import Unit, spread

__all__ = ["QuantiseNetwork", "quantised_networks", "quantised_store"]


def quantised_store(networks: RecordStore) -> RecordStore:
    """Where networks in int8 are: record and ONNX, without weights."""
    return networks.within("int8")


def quantised_networks(
    run: Run, reference: Artifact, networks: RecordStore, trained: Sequence[Trained | None]
) -> list[Record]:
    """Quantise finetuned networks that have no record in int8 yet, on the workers.

    Args:
        run: for the configuration and the cluster.
        reference: of ``reference_step``.
        networks: the store of the finetuned ones.
        trained: which; None is the reference as it was given.

    Returns:
        The record of each, in ``quantised_store``: `key`, `cost`, and `accuracy` over all
        validation images, as the QDQ model gives it.
    """
    facts = calibration_facts(run.config)
    identity = reference_identity(reference)
    store = quantised_store(networks)
    keys = [
        digest({**facts, "reference": identity, "network": each[0] if each else None})
        for each in trained
    ]
    known = store.records()
    missing = [pair for pair in zip(keys, trained, strict=True) if pair[0] not in known]
    run.say(f"  {len(keys) - len(missing)} of {len(keys)} networks are in int8 already")
    work = QuantiseNetwork(run.config, reference, networks, store)
    spread(run, "int8", "networks", [Unit(pair) for pair in missing], work)
    return [store.record(key) for key in keys]


class QuantiseNetwork:
    """Quantises one network on a worker, measures it and stores it."""

    def __init__(
        self, config: RunConfig, reference: Artifact, networks: RecordStore, store: RecordStore
    ) -> None:
        self._config, self._artifact = config, reference
        self._networks, self._store = networks, store

    def __call__(self, given: tuple[str, Trained | None]) -> dict[str, Any]:
        """Do one, given its key and what it is made from."""
        key, trained = given
        reference, data = self._loaded
        network = copy.deepcopy(reference)
        if trained is not None:
            name, specs = trained
            network = untrained(reference, specs) if specs else network
            network.load_state_dict(self._networks.weights(name))
        network.requires_grad_(False).eval()
        images = calibration_images(data.calibration)
        model = quantised_network(network, images)
        record = {
            "network": trained and trained[0],
            "accuracy": accuracy(OnnxNetwork(model), data.validation),
            "cost": {"image_passes": 2 * len(images) + len(data.validation)},
        }
        self._store.put(key, record, {}, {"onnx": model})
        return {}

    @cached_property
    def _loaded(self) -> tuple[StagedNetwork, ImageData]:
        reference, _ = load_reference(self._config, self._artifact)
        return reference, data_of(self._config, self._artifact)
