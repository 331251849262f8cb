"""The blocks of a library on the workers: distilled to the end, or raced for a part of it first."""

from collections.abc import Mapping, Sequence
from typing import Any

from donna_ray.artifacts import Artifact
from donna_ray.config import RacingConfig, RunConfig
from donna_ray.library_measure import pack_costs, seconds_of
from donna_ray.library_watch import LibraryWatch
from donna_ray.library_work import DistillPack
from donna_ray.packs import packs_of
from donna_ray.racing import Entrant, losers
from donna_ray.records import RecordStore
from donna_ray.run import Run
from donna_ray.students import BlockJob
from donna_ray.workers import Unit, spread

__all__ = ["LibraryMaking", "Records"]

Records = Mapping[str, Mapping[str, Any]]


class LibraryMaking:
    """Distils blocks that have no record yet.

    The states of blocks that were stopped early are records of their own, in the folder `paused` of
    the store; a finished block's is removed.

    Args:
        run: for the cluster and the display.
        config: with its precision decided.
        reference: of ``reference_step``.
        store: of the finished blocks.
        jobs: all blocks, a list a stage.
        costs: `params` and `macs` of each.
    """

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        reference: Artifact,
        store: RecordStore,
        jobs: Sequence[Sequence[BlockJob]],
        costs: Sequence[Sequence[Mapping[str, int]]],
    ) -> None:
        self._run, self._config, self._reference, self._store = run, config, reference, store
        self._paused = store.folder("paused")
        self._jobs = jobs
        stages = zip(jobs, costs, strict=True)
        self._costs = {job.key: cost for stage in stages for job, cost in zip(*stage, strict=True)}

    def missing(self) -> list[BlockJob]:
        """The blocks without a record."""
        known = self._store.records()
        return [job for stage in self._jobs for job in stage if job.key not in known]

    def finish(self, jobs: Sequence[BlockJob]) -> None:
        """Distil blocks to the end, from where they were stopped if they were."""
        started = self._paused.records() if jobs else {}
        self._spread("library", jobs, self._store.records(), started=started)

    def race(self, rules: RacingConfig) -> Records:
        """Distil the missing blocks for a part; the records of those that are paused then.

        A block whose loss is not finite takes no part, and is not paused: it gets its second chance
        when it is distilled to the end.
        """
        entered = self._paused.records()
        jobs = [job for job in self.missing() if not _entered(entered.get(job.key), rules)]
        self._spread("race", jobs, entered, share=rules.share)
        known, entered = self._store.records(), self._paused.records()
        raced = {key: record.get("raced", {}) for key, record in known.items()} | entered
        lost: set[str] = set()
        for stage in self._jobs:
            judged = [
                job.key for job in stage if raced.get(job.key, {}).get("share") == rules.share
            ]
            entrants = [
                Entrant(key, raced[key]["nsr"], self._costs[key][rules.cost]) for key in judged
            ]
            lost |= losers(entrants, rules.margin)
        return {key: entered[key] for key in sorted(lost - set(known))}

    def _spread(self, name: str, jobs: Sequence[BlockJob], known: Records, **how: Any) -> None:
        run, config = self._run, self._config
        macs = [self._costs[job.key]["macs"] for job in jobs]
        costs = pack_costs(run, config, self._reference, jobs, macs)
        seconds = seconds_of(costs)
        packs = packs_of(
            jobs,
            lambda job: seconds(job, self._costs[job.key]["macs"]),
            costs["pack_size"],
            config.cluster.workers,
        )
        units = [Unit(pack, weight=len(pack)) for pack in packs]
        done = [(len(stage), sum(job.key in known for job in stage)) for stage in self._jobs]
        watch = LibraryWatch(done, run.root / "library" / "tensorboard")
        work = DistillPack(config, self._reference, self._store, self._paused, **how)
        spread(run, name, "blocks", units, work, watch)
        watch.close()


def _entered(record: Mapping[str, Any] | None, rules: RacingConfig) -> bool:
    """A block took part in a race of this length, or failed in one."""
    return record is not None and ("failed" in record or record["share"] == rules.share)
