"""The block library: every block of the space, distilled, with NSR, params, MACs and weights."""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from donna_ray.artifacts import Artifact, Files, digest
from donna_ray.complexity import complexity
from donna_ray.config import RunConfig
from donna_ray.data import load_data
from donna_ray.distill import BlockJob, DistilledBlock, distill_pack
from donna_ray.records import RecordStore
from donna_ray.reference import load_reference, space_of
from donna_ray.run import Run
from donna_ray.space import SearchSpace, StageShape, record_id
from donna_ray.workers import Unit, spread

__all__ = ["library_step", "packs_of"]


def library_step(run: Run, reference: Artifact) -> Artifact:
    """Step 2: distil every block that has no record yet, on Ray Train workers.

    The records are in ``RUN/library/blocks``, shared by all keys of this step. The result lists,
    for each stage, its choices in the order of the space: spec, record key, NSR, params and MACs.
    """
    space = space_of(run.config, reference)
    jobs = _jobs(run.config, reference, space)
    inputs = {"blocks": [[job.key for job in stage] for stage in jobs]}
    store = RecordStore(run.root / "library" / "blocks")

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        every = [job for stage in jobs for job in stage]
        missing = [job for job in every if store.get(job.key) is None]
        run.say(f"  {len(every) - len(missing)} of {len(every)} blocks are there already")
        work = _DistillPack(run.config, reference, store)
        packs = packs_of(missing, run.config.library.pack_size, run.config.cluster.workers)
        units = [Unit(pack, weight=len(pack)) for pack in packs]
        spread(run, "library", "blocks", units, work)
        records = [[store.get(job.key) or {} for job in stage] for stage in jobs]
        files = [path for job in every for path in store.paths(job.key)]
        return _result(records, len(every) - len(missing)), files

    return run.step("library", inputs, compute)


def packs_of(jobs: Sequence[BlockJob], size: int, workers: int) -> list[list[BlockJob]]:
    """Deal jobs into packs of at most `size`, as many packs for each worker.

    Shuffled first (always alike), so that the packs' costs are about even.
    """
    shuffled = random.Random(0).sample(jobs, len(jobs))
    count = -(-len(jobs) // size)
    count = -(-count // workers) * workers  # no worker is idle while another has its last pack
    return [pack for pack in (shuffled[start::count] for start in range(count)) if pack]


def _jobs(config: RunConfig, reference: Artifact, space: SearchSpace) -> list[list[BlockJob]]:
    common = {
        "reference": reference.digest,
        "data": config.data.model_dump(exclude={"loader_workers"}),
        "recipe": config.library.model_dump(exclude={"pack_size"}),
        "seed": config.seed,
    }
    return [
        [
            BlockJob(digest({**common, "stage": number, "block": record_id(spec)}), number, spec)
            for spec in stage.choices
        ]
        for number, stage in enumerate(space.stages)
    ]


class _DistillPack:
    """Distils one pack on a worker and stores its records; the reference is loaded once."""

    def __init__(self, config: RunConfig, reference: Artifact, store: RecordStore) -> None:
        self._config, self._artifact, self._store = config, reference, store

    def __call__(self, jobs: list[BlockJob]) -> dict[str, Any]:
        config = self._config
        reference, variance, data = self._loaded
        blocks, seconds = distill_pack(reference, variance, jobs, data, config.library, config.seed)
        passes = config.library.epochs * len(data.distillation) + len(data.validation)
        share = {"seconds": seconds / len(jobs), "image_passes": passes / len(jobs)}
        for block in blocks:
            shape = reference.shapes[block.job.stage]
            self._store.put(
                block.job.key, _record(block, shape) | {"cost": share}, block.block.state_dict()
            )
        return {}

    @cached_property
    def _loaded(self) -> tuple[Any, ...]:
        reference, variance = load_reference(self._config, self._artifact)
        if self._config.cluster.gpus_per_worker:
            reference.to("cuda")
        data = load_data(self._config.data, self._artifact.result["preprocessing"])
        return reference, variance, data


def _record(distilled: DistilledBlock, shape: StageShape) -> dict[str, Any]:
    return {
        "stage": distilled.job.stage,
        "block": distilled.job.spec.to_json(),
        "nsr": distilled.nsr,
        **complexity(distilled.block, shape.input),
    }


def _result(records: Sequence[Sequence[Mapping[str, Any]]], reused: int) -> dict[str, Any]:
    names = ("key", "block", "nsr", "params", "macs", "weights_sha256")
    costs = [record["cost"] for stage in records for record in stage]
    return {
        "stages": [
            [{name: record[name] for name in names} for record in stage] for stage in records
        ],
        "cost": {
            "image_passes": round(sum(cost["image_passes"] for cost in costs)),
            "worker_seconds": sum(cost["seconds"] for cost in costs),
            "blocks_reused": reused,
        },
    }
