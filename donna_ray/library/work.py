"""What a worker does with a pack of blocks: it distils them and stores their records."""

import tempfile
import uuid
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from device_farm.ending import one_line
from donna_ray.complexity import complexity
from donna_ray.config import RunConfig
from donna_ray.distill.features import FeatureCache
from donna_ray.distill.pack import DistilledBlock, DistilledPack, distill_pack
from donna_ray.distill.students import BlockJob, TrainingState
from donna_ray.errors import MemoryLimitError
from donna_ray.reference.worker import WorkerContext
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import UNFINISHED, Record, RecordStore
from donna_ray.training.batchnorm import calibrating

__all__ = ["DistillPack", "identity_of"]

_SECOND_CHANCE = 0.1  # of the learning rate, for a block whose loss was not finite


class DistillPack:
    """Distils one pack on a worker and stores its records; the reference is loaded once.

    A block whose loss is not finite is tried once more, at a tenth of the learning rate; if it
    fails again, that is recorded and not tried again. A pack that does not fit the memory is halved
    until it does; a single block that does not, though its steps are done in parts, has failed.
    One that raises an error is tried once more, alone, since cuDNN may have lacked memory; then it
    has failed, too. A pack that was killed goes on from the states that were kept minutes before.

    Args:
        config: of the run, its precision decided.
        reference: of ``reference_step``.
        store: of the finished blocks.
        paused: of the states of blocks that were stopped early.
        started: keys in `paused`, whose training goes on from there.
        share: of their training after which blocks are stopped, and their states stored.
    """

    def __init__(
        self,
        config: RunConfig,
        reference: Artifact,
        store: RecordStore,
        paused: RecordStore,
        started: Collection[str] = (),
        share: float = 1.0,
    ) -> None:
        self._config, self._context = config, WorkerContext(config, reference)
        self._store, self._paused = store, paused
        self._unfinished = store.within(UNFINISHED)
        self._started, self._share = frozenset(started), share
        self._key = uuid.uuid4().hex  # of the features, for all workers that get this object

    def __call__(self, jobs: Sequence[BlockJob]) -> dict[str, Any]:
        """Do a pack; the facts are those that ``LibraryWatch`` takes."""
        known = {job.key: record for job in jobs if (record := self._stored(job)) is not None}
        blocks = [[record["stage"], record.get("nsr")] for record in known.values()]
        images, shares = 0, list[float | None]()
        waiting = [([job for job in jobs if job.key not in known], 1.0)]
        while waiting:
            some, factor = waiting.pop()
            if not some:
                continue
            before = self._before(some)
            resumed = before if factor == 1 else {}
            try:
                pack = self._distil(some, factor, resumed)
            except (MemoryLimitError, torch.OutOfMemoryError) as error:
                half = len(some) // 2
                waiting += [(some[half:], factor), (some[:half], factor)] if half else []
                if not half:
                    blocks += self._keep_failed([(some[0], one_line(str(error)))], for_memory=True)
                continue
            images += self._keep(pack, before, resumed)
            shares.append(pack.reference_share)
            failed = [each for each in pack.blocks if each.failure is not None]
            again = self._again(failed, len(some), factor)
            waiting += again
            tried = {job.key for jobs, _ in again for job in jobs}
            ended = [(one.job, one.failure or "") for one in failed if one.job.key not in tried]
            blocks += self._keep_failed(ended)
            blocks += [[each.job.stage, each.nsr] for each in pack.blocks if each.failure is None]
        self._unfinished.remove([job.key for job in jobs])
        return {"blocks": blocks, "images": images, "reference_share": _mean(shares)}

    def _again(
        self, failed: Sequence[DistilledBlock], of: int, factor: float
    ) -> list[tuple[list[BlockJob], float]]:
        """The packs in which blocks are tried once more that failed in a pack of so many."""
        alone = [([each.job], factor) for each in failed if each.raised and of > 1]
        slower = [each.job for each in failed if not each.raised]
        return [*alone, (slower, _SECOND_CHANCE)] if self._share == 1 and factor == 1 else alone

    def _distil(self, jobs: list[BlockJob], factor: float, resumed: "_Before") -> DistilledPack:
        """From where the blocks were stopped; in long packs their states are kept meanwhile."""
        torch.cuda.empty_cache()  # of a pack that did not fit
        context, states = self._context, {key: state for key, (_, state) in resumed.items()}
        if factor == 1:
            states |= self._left(jobs)
        return distill_pack(
            context.reference,
            context.variance,
            jobs,
            context.data,
            self._config.library,
            self._config.seed,
            cache=self._cache,
            learning_rate_factor=factor,
            share=self._share,
            states=states,
            keep=self._keep_states if factor == 1 else None,
        )

    def _keep_states(self, states: Mapping[str, TrainingState]) -> None:
        for key, state in states.items():
            self._unfinished.put(key, {"steps": state.steps, "share": self._share}, state.tensors)

    def _left(self, jobs: Sequence[BlockJob]) -> dict[str, TrainingState]:
        """The states that a worker kept which died in a pack of these blocks."""
        records = {job.key: self._unfinished.get(job.key) for job in jobs}
        return {
            key: TrainingState(record["steps"], self._unfinished.weights(key))
            for key, record in records.items()
            if record is not None and record["share"] == self._share
        }

    def _stored(self, job: BlockJob) -> Record | None:
        """What a worker stored that died in the same pack, or was taken for dead."""
        if self._share == 1:
            return self._store.get(job.key)
        record = self._paused.get(job.key)
        return record if record and record.get("share") == self._share else None

    def _before(self, jobs: Sequence[BlockJob]) -> "_Before":
        """Records and states that were stored when blocks were stopped, by key."""
        found = {}
        for key in {job.key for job in jobs} & self._started:
            record = self._paused.get(key)
            if record is not None and "failed" not in record:
                found[key] = record, TrainingState(record["steps"], self._paused.weights(key))
        return found

    def _keep(self, pack: DistilledPack, before: "_Before", resumed: "_Before") -> int:
        """Store the blocks that did not fail; returns the images that the pack took."""
        jobs = [block.job for block in pack.blocks]
        if not jobs:
            return 0
        images = self._passes(jobs, resumed)
        cost = {"seconds": pack.seconds / len(jobs), "image_passes": images / len(jobs)}
        for block in pack.blocks:
            if block.failure is None:
                self._keep_block(block, cost, before.get(block.job.key, (None,))[0])
        return images

    def _keep_block(
        self, block: DistilledBlock, cost: dict[str, float], earlier: Record | None
    ) -> None:
        key, shape = block.job.key, self._context.reference.shapes[block.job.stage]
        record = {
            **identity_of(block.job),
            **complexity(block.block, shape.input),
            "nsr": block.nsr,
            "cost": cost,
        }
        if earlier is not None:
            record["raced"] = {name: earlier[name] for name in ("share", "nsr")}
            record["cost"] = {name: cost[name] + earlier["cost"][name] for name in cost}
        if self._share == 1:
            self._store.put(key, record, block.block.state_dict())
        else:
            assert block.state is not None
            state = {**record, "share": self._share, "steps": block.state.steps}
            self._paused.put(key, state, block.state.tensors)

    def _keep_failed(
        self, failures: Sequence[tuple[BlockJob, str]], *, for_memory: bool = False
    ) -> list[list[Any]]:
        """Store the reasons; returns the facts of these blocks."""
        store = self._store if self._share == 1 else self._paused
        for job, reason in failures:
            store.put_failed(job.key, reason, identity_of(job), for_memory=for_memory)
        return [[job.stage, None] for job, _ in failures]

    def _passes(self, jobs: Sequence[BlockJob], before: "_Before") -> int:
        """Images of a pack, less those of the training that its blocks have done before."""
        data, library = self._context.data, self._config.library
        epochs = max(library.recipe_of(job.spec.family).epochs for job in jobs)
        done = min(before[job.key][0]["share"] if job.key in before else 0.0 for job in jobs)
        trained = round((self._share - done) * epochs * len(data.distillation))
        measured = calibrating(data.distillation_plain) + len(data.validation)
        return trained + (measured if self._share == 1 else 0)

    @cached_property
    def _cache(self) -> FeatureCache | None:
        if self._config.library.features == "compute":
            return None
        on_disk = self._config.library.features == "disk"
        folder = Path(tempfile.gettempdir()) if on_disk else None
        return FeatureCache.build(self._context.reference, self._context.data, self._key, folder)


_Before = dict[str, tuple[Record, TrainingState]]


def identity_of(job: BlockJob) -> dict[str, Any]:
    """What every record of a block begins with."""
    return {"stage": job.stage, "block": job.spec.to_json()}


def _mean(shares: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None
