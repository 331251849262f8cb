"""Finetuned networks in half precision: made of their ONNX files, measured, kept beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from donna_ray.config import RunConfig
from donna_ray.data import inputs_without_test
from donna_ray.finetune.quantised import NetworkWork, make_missing
from donna_ray.finetune.tested import tested_models
from donna_ray.finetune.work import FinetuneJob
from donna_ray.latency.quantised import CALIBRATED_ON, calibration_images
from donna_ray.onnx_export import OnnxNetwork, export_onnx
from donna_ray.onnx_half import half_network, largest_value
from donna_ray.reference.identity import reference_identity
from donna_ray.run.doubts import half_doubts
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact, digest
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import accuracy

__all__ = ["HalveNetwork", "add_in_half", "half_facts", "half_store", "networks_in_half"]

_FP16, _NETWORKS = "fp16", "networks"


def half_store(networks: RecordStore) -> RecordStore:
    """Where networks in half precision are: record and ONNX, without weights."""
    return networks.within(_FP16)


def half_facts(config: RunConfig) -> dict[str, Any]:
    """What, beside weights, decides what is known of a network in half precision."""
    data = inputs_without_test(config.data)
    return {"precision": _FP16, "images": CALIBRATED_ON, "data": data}


def networks_in_half(
    run: Run, reference: Artifact, networks: RecordStore, trained: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Networks in half precision, made and measured on the workers where they were not before.

    Args:
        run: for the configuration and the cluster.
        reference: of ``reference_step``.
        networks: the store of the finetuned ones.
        trained: keys of these; None is the reference as it was given.

    Returns:
        Of each, in order: `key` in ``half_store``, `accuracy` over all validation images, `largest`
        (absolute value of its weights and, on training images, of its activations, in float), the
        facts of ``tested_models``, and `image_passes`. Accuracies are of what a device of float16
        computes: see ``OnnxNetwork``.
    """
    common = {**half_facts(run.config), "reference": reference_identity(reference)}
    store = half_store(networks)
    keys = [digest({**common, "network": each}) for each in trained]
    make_missing(run, _FP16, keys, trained, HalveNetwork(run.config, reference, networks, store))
    tests = tested_models(run, reference, store, keys)
    made = []
    for key, test in zip(keys, tests, strict=True):
        record = store.record(key)
        passes = record["cost"]["image_passes"] + test["test_images"]
        facts = {name: record[name] for name in ("accuracy", "largest")}
        made.append({"key": key, **facts, **test, "image_passes": passes})
    return made


def add_in_half(
    run: Run,
    reference: Artifact,
    networks: RecordStore,
    done: Sequence[FinetuneJob],
    found: dict[str, Any],
) -> list[Path]:
    """Add to the result of the step `finetune` what its networks are in half precision.

    Args:
        networks: the store of the finetuned ones.
        done: these, the reference that was finetuned likewise as the last.
        found: the result; its networks and the reference get `fp16`.

    Returns:
        Their files, in the run folder.
    """
    made = networks_in_half(run, reference, networks, [None, *(job.key for job in done)])
    found["cost"]["image_passes"] += sum(each.pop("image_passes") for each in made)
    keys = [each.pop("key") for each in made]
    for key, each in zip(keys, made, strict=True):
        each["onnx"] = f"{_NETWORKS}/{_FP16}/{key}.onnx"
    found["reference"][_FP16], *others, found["reference"]["finetuned"][_FP16] = made
    for job, own in zip(done[:-1], others, strict=True):
        found["networks"][job.architecture_id][_FP16] = own
    every = {"the reference": found["reference"], **found["networks"]}
    found["doubts"] += half_doubts(every)
    right = [own["test_accuracy"] for own in made[:-1]]
    run.say(f"  in fp16 {min(right):.2%} to {max(right):.2%}")
    return half_store(networks).fetch(keys, run.root / _NETWORKS / _FP16)


class HalveNetwork(NetworkWork):
    """Makes one network one of half precision on a worker, measures it and stores it."""

    def __call__(self, given: tuple[str, str | None]) -> dict[str, Any]:
        """Do one, given its key and that of what it is made from."""
        key, name = given
        reference, data = self._loaded
        if name is None:
            model = export_onnx(reference, reference.input_shape)
        else:
            model = self._networks.file(name, "onnx")
        images, half = calibration_images(data.calibration), half_network(model)
        record = {
            "network": name,
            "accuracy": accuracy(OnnxNetwork(half), data.validation),
            "largest": largest_value(model, images),
            "cost": {"image_passes": len(images) + len(data.validation)},
        }
        self.store.put(key, record, {}, {"onnx": half})
        return {}
