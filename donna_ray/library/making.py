"""What the workers do for a library, in rounds: a race over a part of the training, the rest."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from donna_ray.config import RacingConfig, RunConfig
from donna_ray.distill.dealing import packs_of
from donna_ray.distill.racing import Entrant, losers
from donna_ray.distill.students import BlockJob
from donna_ray.library.costs import pack_costs, seconds_of
from donna_ray.library.watch import LibraryWatch
from donna_ray.library.work import DistillPack
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import PAUSED, RecordStore
from donna_ray.workers.spread import Unit

__all__ = ["LibraryMaking", "Records"]

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Round:
    """What ``spread`` is called with: the step's name for the display, packs, work, display."""

    name: str
    units: Sequence[Unit]
    work: DistillPack
    watch: LibraryWatch


class LibraryMaking:
    """What is to be done for the blocks that have no record yet.

    The states of blocks that were stopped early are records of their own, in the folder `paused` of
    the store; a finished block's is removed.

    Attributes:
        paused: the records of blocks that the race has paused.

    Args:
        run: for the cluster.
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
        self._paused, self._jobs = store.within(PAUSED), jobs
        self.paused: Records = {}
        stages = zip(jobs, costs, strict=True)
        self._costs = {job.key: cost for stage in stages for job, cost in zip(*stage, strict=True)}

    def missing(self) -> list[BlockJob]:
        """The blocks without a record."""
        known = self._store.records()
        return [job for stage in self._jobs for job in stage if job.key not in known]

    def rounds(self) -> Iterator[Round]:
        """One after the other; each must have been done before the next one is asked for."""
        racing = self._config.library.racing
        while True:  # a winner of the race that fails later beats nobody
            if racing:
                yield from self._race(racing)
                self.paused = self._losers(racing)
            jobs = [job for job in self.missing() if job.key not in self.paused]
            if not jobs:
                break
            yield self._round("library", jobs, self._paused.records(), 1.0)
        self._paused.remove(set(self._paused.records()) & set(self._store.records()))

    def _race(self, rules: RacingConfig) -> Iterator[Round]:
        """The missing blocks for a part of their training, if there are any."""
        entered = self._paused.records()
        jobs = [job for job in self.missing() if not _entered(entered.get(job.key), rules)]
        shorter = [key for key, record in entered.items() if record.get("share", 1) < rules.share]
        if jobs:
            yield self._round("library race", jobs, shorter, rules.share)

    def _losers(self, rules: RacingConfig) -> Records:
        """The records of those that are paused.

        Blocks whose recipes have as many epochs race each other, a stage at a time. A block that
        failed takes no part; one that fails in the race is not paused, for it gets its second
        chance when it is distilled to the end.
        """
        known, entered = self._store.records(), self._paused.records()
        raced = entered | {key: record.get("raced", {}) for key, record in known.items()}
        lost: set[str] = set()
        for entrants in self._fields(raced, rules):
            lost |= losers(entrants, rules.margin)
        return {key: entered[key] for key in sorted(lost - set(known))}

    def _fields(self, raced: Records, rules: RacingConfig) -> list[list[Entrant]]:
        """Those that race each other."""
        fields: dict[tuple[int, int], list[Entrant]] = defaultdict(list)
        for job in (job for stage in self._jobs for job in stage):
            record = raced.get(job.key, {})
            if record.get("share") == rules.share:
                epochs = self._config.library.recipe_of(job.spec.family).epochs
                cost = self._costs[job.key][rules.cost]
                fields[job.stage, epochs].append(Entrant(job.key, record["nsr"], cost))
        return list(fields.values())

    def _round(
        self, name: str, jobs: Sequence[BlockJob], started: Collection[str], share: float
    ) -> Round:
        """Blocks for a share of their training; `started` ones go on from their states."""
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
        totals = [sum(job.key not in self.paused for job in stage) for stage in self._jobs]
        open_ = Counter(job.stage for job in jobs)
        done = [(total, total - open_[number]) for number, total in enumerate(totals)]
        return Round(
            name,
            [Unit(pack, weight=len(pack)) for pack in packs],
            DistillPack(config, self._reference, self._store, self._paused, started, share),
            LibraryWatch(done, run.root / "library" / "tensorboard" / name),
        )


def _entered(record: Mapping[str, Any] | None, rules: RacingConfig) -> bool:
    """A block took part in a race of this length, or failed in one."""
    return record is not None and ("failed" in record or record["share"] == rules.share)
