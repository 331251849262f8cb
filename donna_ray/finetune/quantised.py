"""Finetuned networks in int8: quantised after the training, measured, and kept as QDQ models.

They are not trained in int8: their weights are those of the finetuning, and the ranges of their
activations are measured on training images.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from donna_ray.config import RunConfig
from donna_ray.data import ImageData
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import untrained
from donna_ray.finetune.tested import Trained, tested_models
from donna_ray.finetune.work import FinetuneJob
from donna_ray.latency.quantised import CALIBRATED_ON, best_quantised
from donna_ray.library.quantised import calibration_facts, check_reference_in_int8, left_out
from donna_ray.onnx_export import OnnxNetwork, sums_saturate
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.doubts import int8_doubts, saturation_doubts
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, digest
from donna_ray.storage.records import Record, RecordStore
from donna_ray.training.loop import accuracy
from donna_ray.workers.spread import Unit, spread

_FOLDER = "networks/int8"
_PASSES = 7  # of twice two to measure ranges, and three to compare

__all__ = [
    "NetworkWork",
    "QuantiseNetwork",
    "add_int8",
    "in_int8",
    "make_missing",
    "quantised_networks",
    "quantised_store",
]


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
        validation images, as the QDQ model gives it. Where it could not be quantised it has the
        reason under `failed` in place of `accuracy` and `cost`: see ``in_int8``.
    """
    facts = calibration_facts(run.config)
    identity = reference_identity(reference)
    store = quantised_store(networks)
    keys = [
        digest({**facts, "reference": identity, "network": each[0] if each else None})
        for each in trained
    ]
    work = QuantiseNetwork(run.config, reference, networks, store)
    make_missing(run, "int8", keys, trained, work)
    return [store.record(key) for key in keys]


def make_missing(
    run: Run, precision: str, keys: Sequence[str], trained: Sequence[Any], work: "NetworkWork"
) -> None:
    """Have workers make those of finetuned networks whose keys its store has not yet."""
    known = work.store.records()
    missing = [pair for pair in zip(keys, trained, strict=True) if pair[0] not in known]
    run.say(f"  {len(keys) - len(missing)} of {len(keys)} networks are in {precision} already")
    spread(run, precision, "networks", [Unit(pair) for pair in missing], work)


def add_int8(
    run: Run,
    reference: Artifact,
    networks: RecordStore,
    done: Sequence[FinetuneJob],
    found: dict[str, Any],
) -> list[Path]:
    """Add to the result of finetuning what its networks are in int8.

    Args:
        run: for the configuration, the folder and the cluster.
        reference: of ``reference_step``.
        networks: the store of the finetuned ones.
        done: the networks, the finetuned reference as the last.
        found: the result. Each network and the reference get `int8` (accuracies, of validation and
            test, and `onnx`), or, what cannot be quantised, `int8_failed`, the reason.

    Returns:
        Their files.

    Raises:
        DonnaError: the reference cannot be quantised, or no network can.
    """
    keys = [None, *((job.key, job.specs) for job in done)]
    given, *records, own = quantised_networks(run, reference, networks, keys)
    check_reference_in_int8(given.get("failed"))
    check_reference_in_int8(own.get("failed"), "the reference, finetuned,")
    names = [job.architecture_id for job in done[:-1]]
    left = in_int8(run, names, records)
    holders = [found["reference"], found["reference"]["finetuned"]]
    holders += [found["networks"][names[index]] for index in left]
    for name, record in zip(names, records, strict=True):
        if "failed" in record:
            found["networks"][name]["int8_failed"] = record["failed"]
    made = quantised_store(networks)
    records = [given, own, *(records[index] for index in left)]
    tests = tested_models(run, reference, made, [each["key"] for each in records])
    for holder, record, test in zip(holders, records, tests, strict=True):
        onnx = f"{_FOLDER}/{record['key']}.onnx"
        holder["int8"] = {"accuracy": record["accuracy"], "onnx": onnx, **test}
        found["cost"]["image_passes"] += record["cost"]["image_passes"] + test["test_images"]
    _tell(run, found)
    return made.fetch([each["key"] for each in records], run.root / _FOLDER)


def _tell(run: Run, found: dict[str, Any]) -> None:
    """What quantisation costs, and the doubts."""
    every = {"the reference": found["reference"], **found["networks"]}
    pairs = {
        name: (each["test_accuracy"], each["int8"]["test_accuracy"])
        for name, each in every.items()
        if "int8" in each
    }
    found["doubts"] += int8_doubts(pairs)
    found["doubts"] += saturation_doubts(run.config.all_scenarios(), saturates=sums_saturate())
    accuracies = [own for _, own in pairs.values()]
    run.say(f"  in int8 {min(accuracies):.2%} to {max(accuracies):.2%}")


def in_int8(run: Run, names: Sequence[str], records: Sequence[Record]) -> list[int]:
    """Indices of the networks that could be quantised; the others are said.

    Args:
        run: that says it.
        names: of the networks.
        records: of ``quantised_networks``.

    Raises:
        DonnaError: there is none.
    """
    for name, record in zip(names, records, strict=True):
        if "failed" in record:
            run.say(f"  {name} is left without figures in int8: {record['failed']}")
    left = [index for index, record in enumerate(records) if "failed" not in record]
    if not left:
        raise DonnaError(
            f"At least one network must be quantised with device.precision: int8, but none of "
            f"{len(records)} can be (see above). Choose other blocks, or search in fp32."
        )
    return left


class NetworkWork(ABC):
    """What a worker needs to make others of finetuned networks: both stores, reference, images.

    Attributes:
        store: of what is made.
    """

    def __init__(
        self, config: RunConfig, reference: Artifact, networks: RecordStore, store: RecordStore
    ) -> None:
        self._config, self._artifact = config, reference
        self._networks, self.store = networks, store

    @abstractmethod
    def __call__(self, given: tuple[str, Any]) -> dict[str, Any]:
        """Do one, given its key and what it is made from."""

    @cached_property
    def _loaded(self) -> tuple[StagedNetwork, ImageData]:
        reference, _ = load_reference(self._config, self._artifact)
        return reference, data_of(self._config, self._artifact)


class QuantiseNetwork(NetworkWork):
    """Quantises one network on a worker, measures it and stores it."""

    def __call__(self, given: tuple[str, Trained | None]) -> dict[str, Any]:
        key, trained = given
        with left_out(self.store, key, {"network": trained and trained[0]}):
            self._quantise(key, trained)
        return {}

    def _quantise(self, key: str, trained: Trained | None) -> None:
        reference, data = self._loaded
        network = copy.deepcopy(reference)
        if trained is not None:
            name, specs = trained
            network = untrained(reference, specs) if specs else network
            network.load_state_dict(self._networks.weights(name))
        network.requires_grad_(False).eval()
        model = best_quantised(network, data.calibration)
        passes = _PASSES * min(CALIBRATED_ON, len(data.calibration))
        record = {
            "network": trained and trained[0],
            "accuracy": accuracy(OnnxNetwork(model), data.validation),
            "cost": {"image_passes": passes + len(data.validation)},
        }
        self.store.put(key, record, {}, {"onnx": model})
