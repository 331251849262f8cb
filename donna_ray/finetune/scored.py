"""Networks that are only scored: put together of distilled blocks, and not finetuned."""

from collections.abc import Sequence
from typing import Any

import torch

from donna_ray.config import RunConfig
from donna_ray.errors import MemoryLimitError
from donna_ray.finetune.assemble import assemble, block_keys, library_space
from donna_ray.finetune.store import network_store
from donna_ray.finetune.work import FinetuneJob, identity_of, zero_shot_accuracy
from donna_ray.library.step import library_store
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.worker import WorkerContext
from donna_ray.run.run import Run
from donna_ray.space import Architecture
from donna_ray.storage.artifacts import Artifact, digest
from donna_ray.storage.records import RecordStore
from donna_ray.training.batchnorm import calibrating
from donna_ray.workers.group import current_group
from donna_ray.workers.spread import Unit, spread

__all__ = ["score"]


def score(
    run: Run, reference: Artifact, library: Artifact, architectures: Sequence[Architecture]
) -> list[dict[str, Any]]:
    """Measure networks before any finetuning, on the workers; what has a record is not measured.

    Args:
        run: for the configuration, the folder and the cluster.
        reference: of ``reference_step``.
        library: of ``library_step``.
        architectures: to score.

    Returns:
        Of each, in order: `id`, `zero_shot_accuracy` (of all validation images, with BatchNorm
        recalibrated) and `image_passes`. Those that fit no worker's memory are left out.
    """
    store = network_store(run).within("scored")
    jobs = _jobs(reference, library, architectures)
    store.try_again(job.key for job in jobs)
    known = store.records()
    missing = [job for job in jobs if job.key not in known]
    run.say(f"  {len(jobs) - len(missing)} of {len(jobs)} networks are scored already")
    work = _ScoreNetwork(run.config, reference, library_store(run), store)
    together = run.config.finetune.workers_per_network  # as then, so that the workers are kept
    spread(run, "score", "networks", list(map(Unit, missing)), work, workers_per_unit=together)
    known = store.records()
    return [
        {
            "id": job.architecture_id,
            "zero_shot_accuracy": known[job.key]["zero_shot_accuracy"],
            "image_passes": known[job.key]["cost"]["image_passes"],
        }
        for job in jobs
        if "failed" not in known[job.key]
    ]


def _jobs(
    reference: Artifact, library: Artifact, architectures: Sequence[Architecture]
) -> list[FinetuneJob]:
    identity, space, keys = (
        reference_identity(reference),
        library_space(library),
        block_keys(library),
    )
    jobs = []
    for architecture in architectures:
        blocks = tuple(stage[choice] for stage, choice in zip(keys, architecture, strict=True))
        key = digest({"reference": identity, "blocks": blocks, "scored": True})
        specs = tuple(space.specs(architecture))
        jobs.append(FinetuneJob(key, space.id_of(architecture), specs, blocks))
    return jobs


class _ScoreNetwork:
    """Scores one architecture on a worker."""

    def __init__(
        self, config: RunConfig, reference: Artifact, blocks: RecordStore, store: RecordStore
    ) -> None:
        self._context, self._blocks, self._store = WorkerContext(config, reference), blocks, store

    def __call__(self, job: FinetuneJob) -> dict[str, Any]:
        if not current_group().first:
            return {}
        context = self._context
        try:
            network = assemble(context.reference, job.specs, job.blocks, self._blocks)
            reached = zero_shot_accuracy(context.engine.place(network), context.data)
        except (MemoryLimitError, torch.OutOfMemoryError) as error:
            self._store.put_failed(job.key, str(error), identity_of(job), for_memory=True)
            return {}
        passes = calibrating(context.data.calibration) + len(context.data.validation)
        record = {"zero_shot_accuracy": reached, "cost": {"image_passes": passes}}
        self._store.put(job.key, identity_of(job) | record, {})
        return {}
