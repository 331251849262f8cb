"""The predictor of accuracies in int8: the same samples, quantised."""

from typing import Any

import numpy as np

from donna_ray.errors import DonnaError
from donna_ray.finetune.quantised import in_int8, quantised_networks
from donna_ray.finetune.step import network_store
from donna_ray.finetune.work import FinetuneJob
from donna_ray.predictor.model import VERSION
from donna_ray.predictor.step import doubts_of, fitted
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, record_id
from donna_ray.storage.artifacts import Artifact, Files

__all__ = ["quantised_predictor"]


def quantised_predictor(
    run: Run, reference: Artifact, library: Artifact, predictor: Artifact
) -> Artifact:
    """Fit the accuracy in int8 to the NSR in int8, of the samples that are finetuned already.

    Args:
        run: for the configuration and the cluster.
        reference: of ``reference_step``.
        library: in int8, of ``libraries``.
        predictor: of ``predictor_step``.

    Returns:
        As ``predictor_step``.

    Raises:
        DonnaError: fewer than half of the samples can be quantised.
    """
    store = network_store(run)
    known = store.records()
    jobs = [_job(each, known[each["key"]]) for each in predictor.result["samples"]]
    ratios = [
        {record_id(BlockSpec.from_json(block["block"])): block["nsr"] for block in stage}
        for stage in library.result["stages"]
    ]
    nsr = np.array(
        [
            [stage[record_id(spec)] for stage, spec in zip(ratios, job.specs, strict=True)]
            for job in jobs
        ]
    )
    inputs = {
        "samples": [[job.key, *row] for job, row in zip(jobs, nsr.tolist(), strict=True)],
        "settings": {"seed": run.config.seed, "version": VERSION},
        "precision": "int8",
    }

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        trained = [(job.key, job.specs) for job in jobs]
        found = quantised_networks(run, reference, store, trained)
        left = in_int8(run, [job.architecture_id for job in jobs], found)
        if 2 * len(left) < len(jobs):
            raise DonnaError(
                "At least half of the networks of predictor must be quantised with "
                f"device.precision: int8, but {len(left)} of {len(jobs)} can be (see above). "
                "Choose other blocks, or search in fp32."
            )
        records = [
            {**known[jobs[n].key], "accuracy": found[n]["accuracy"], "cost": found[n]["cost"]}
            for n in left
        ]
        kept = [jobs[n] for n in left]
        result = fitted(kept, nsr[left], records, library, run.config.seed)
        result["doubts"] = [f"In int8: {each}" for each in doubts_of(run, result, reference)]
        return result, []

    return run.step("predictor/int8", inputs, compute)


def _job(sample: dict[str, Any], record: dict[str, Any]) -> FinetuneJob:
    specs = tuple(BlockSpec.from_json(each) for each in record["blocks"])
    return FinetuneJob(sample["key"], sample["id"], specs, ())
