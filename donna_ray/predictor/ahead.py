"""Sampled networks that are finetuned while other blocks are still being distilled."""

from donna_ray.config import RunConfig
from donna_ray.finetune.step import FinetuneJob, FinetuneNetwork, jobs_of, network_store, work_of
from donna_ray.library.making import Following
from donna_ray.library.step import Jobs, library_store
from donna_ray.predictor.step import first_round
from donna_ray.run.run import Run
from donna_ray.space import SearchSpace
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore

__all__ = ["known_samples", "samples_ahead"]


def known_samples(config: RunConfig) -> int:
    """How many samples of the predictor are known, and so finetuned, before the library is there.

    Random ones are known from the space. Informed ones depend on the NSR of all blocks, and what is
    in the space at all on the race, where there is one.
    """
    predictor = config.predictor
    alone = predictor.workers_per_network == 1  # as workers of the library are
    if predictor.sampling != "random" or config.library.racing or not alone:
        return 0
    return first_round(predictor)


def samples_ahead(
    run: Run, reference: Artifact, space: SearchSpace, jobs: Jobs
) -> Following | None:
    """The samples of the predictor, for ``library_step``; None where they are not known before.

    If a block fails the space is another one, and so are the samples: networks that were finetuned
    ahead may then be of no use.
    """
    config, known_before = run.config.predictor, known_samples(run.config)
    if not known_before:
        return None
    keys = [[job.key for job in stage] for stage in jobs]
    chosen = space.sample(config.samples, run.config.seed)[:known_before]
    known = network_store(run).records()
    networks = [
        job for job in jobs_of(run, reference, keys, space, chosen, config) if job.key not in known
    ]
    work = _IfThere(work_of(run, reference, config), library_store(run))
    return Following("networks", [(job, job.blocks) for job in networks], work)


class _IfThere:
    """Finetunes a network unless one of its blocks failed."""

    def __init__(self, finetune: FinetuneNetwork, blocks: RecordStore) -> None:
        self._finetune, self._blocks = finetune, blocks

    def __call__(self, job: FinetuneJob) -> None:
        records = [self._blocks.get(key) for key in job.blocks]
        if all(record is not None and "failed" not in record for record in records):
            self._finetune(job)
