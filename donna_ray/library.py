"""The block library: every block of the space, distilled, with NSR, params, MACs and weights."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch

from donna_ray.artifacts import Artifact, Files, digest
from donna_ray.complexity import complexity
from donna_ray.config import RunConfig
from donna_ray.data import ImageData, load_data
from donna_ray.distill import BlockJob, DistilledBlock, distill_pack
from donna_ray.errors import DonnaError
from donna_ray.features import FeatureCache
from donna_ray.library_watch import LibraryWatch
from donna_ray.network import StagedNetwork
from donna_ray.packs import packs_of
from donna_ray.precision import measured_precision
from donna_ray.records import RecordStore, block_store
from donna_ray.reference import load_reference, space_of
from donna_ray.run import Run
from donna_ray.space import BlockSpec, SearchSpace, check_space, record_id
from donna_ray.workers import Unit, spread, task_resources

__all__ = ["library_step", "library_store"]

_SECOND_CHANCE = 0.1  # of the learning rate, for a block whose loss was not finite


def library_store(run: Run) -> RecordStore:
    """Where a run's distilled blocks are: `library.store`, or a folder of the run."""
    return block_store(run.root, run.config.library.store)


def library_step(run: Run, reference: Artifact) -> Artifact:
    """Step 2: distil every block that has no record yet, on Ray Train workers.

    The result lists, for each stage, the blocks that could be distilled, in the order of the space
    (spec, record key, NSR, params, MACs), and those that failed, with the reason.

    Raises:
        DonnaError: every block of a stage failed.
    """
    space = space_of(run.config, reference)
    config = _settled(run, reference)
    jobs = _jobs(config, reference, space)
    every = [job for stage in jobs for job in stage]
    store = library_store(run)
    keys = [[job.key for job in stage] for stage in jobs]
    inputs = {"blocks": keys, "store": run.config.library.store}

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        known = store.records()
        missing = [job for job in every if job.key not in known]
        run.say(f"  {len(every) - len(missing)} of {len(every)} blocks are there already")
        costs = [cost["macs"] for stage in check_space(space) for cost in stage]
        macs = dict(zip((job.key for job in every), costs, strict=True))
        size, workers = config.library.pack_size, config.cluster.workers
        packs = packs_of(missing, lambda job: macs[job.key], size, workers)
        units = [Unit(pack, weight=len(pack)) for pack in packs]
        done = [(len(stage), sum(job.key in known for job in stage)) for stage in jobs]
        watch = LibraryWatch(done, run.root / "library" / "tensorboard")
        spread(run, "library", "blocks", units, _DistillPack(config, reference, store), watch)
        watch.close()
        result = _result(space, jobs, store.records(), len(every) - len(missing))
        _check_failures(run, result)
        return result, []

    def intact(artifact: Artifact) -> bool:
        known = store.records()
        blocks = (block for stage in artifact.result["stages"] for block in stage)
        return all(
            known.get(block["key"], {}).get("weights_sha256") == block["weights_sha256"]
            for block in blocks
        )

    return run.step("library", inputs, compute, intact)


def _settled(run: Run, reference: Artifact) -> RunConfig:
    """The configuration with `precision` decided: once in a run folder, by a measurement."""
    config = run.config
    if config.library.precision != "auto":
        return config
    kind = config.cluster.model_dump(exclude={"workers", "retries"})
    inputs = {"reference": reference.digest, "cluster": kind}

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        run.ray.ensure()
        measure = ray.remote(_measured_precision).options(**task_resources(config.cluster))
        return {"precision": ray.get(measure.remote(config, reference))}, []

    precision = run.step("library/precision", inputs, compute).result["precision"]
    library = config.library.model_copy(update={"precision": precision})
    return config.model_copy(update={"library": library})


def _jobs(config: RunConfig, reference: Artifact, space: SearchSpace) -> list[list[BlockJob]]:
    common = {
        "reference": reference.digest,
        "data": config.data.model_dump(exclude={"loader_workers", "download"}),
        "precision": config.library.precision,
        "seed": config.seed,
    }

    def job(number: int, spec: BlockSpec) -> BlockJob:
        recipe = config.library.recipe_of(spec.family).model_dump()
        block = {"stage": number, "block": record_id(spec), "recipe": recipe}
        return BlockJob(digest({**common, **block}), number, spec)

    return [
        [job(number, spec) for spec in stage.choices] for number, stage in enumerate(space.stages)
    ]


class _DistillPack:
    """Distils one pack on a worker and stores its records; the reference is loaded once.

    A block whose loss is not finite is tried once more, at a tenth of the learning rate; if it
    fails again, that is recorded and not tried again. A pack that does not fit the memory of a GPU
    is halved until it does.
    """

    def __init__(self, config: RunConfig, reference: Artifact, store: RecordStore) -> None:
        self._config, self._artifact, self._store = config, reference, store

    def __call__(self, jobs: list[BlockJob]) -> dict[str, Any]:
        blocks = self._fitting(jobs, 1.0)
        again = [block.job for block in blocks if block.failure is not None]
        if again:
            blocks = [block for block in blocks if block.failure is None]
            blocks += self._fitting(again, _SECOND_CHANCE)
        for block in blocks:
            if block.failure is not None:
                self._store.put_failed(block.job.key, block.failure, _identity(block.job))
        return {
            "blocks": [[block.job.stage, block.nsr] for block in blocks],
            "images": self._images(),
        }

    def _fitting(self, jobs: list[BlockJob], factor: float) -> list[DistilledBlock]:
        try:
            return self._distil(jobs, factor)
        except torch.OutOfMemoryError:
            if len(jobs) == 1:
                raise
        torch.cuda.empty_cache()  # behind the except clause, which holds the tensors of the pack
        half = len(jobs) // 2
        return self._fitting(jobs[:half], factor) + self._fitting(jobs[half:], factor)

    def _distil(self, jobs: list[BlockJob], factor: float) -> list[DistilledBlock]:
        """Distil a pack and store the blocks that did not fail."""
        reference, variance, data, cache = self._loaded
        recipe, seed = self._config.library, self._config.seed
        blocks, seconds = distill_pack(
            reference,
            variance,
            jobs,
            data,
            recipe,
            seed,
            cache=cache,
            learning_rate_factor=factor,
        )
        share = {"seconds": seconds / len(jobs), "image_passes": self._images() / len(jobs)}
        for block in blocks:
            if block.failure is None:
                shape = reference.shapes[block.job.stage]
                cost = complexity(block.block, shape.input)
                record = {**_identity(block.job), "nsr": block.nsr, **cost, "cost": share}
                self._store.put(block.job.key, record, block.block.state_dict())
        return blocks

    def _images(self) -> int:
        data, recipe = self._loaded[2], self._config.library
        return recipe.epochs * len(data.distillation) + len(data.validation)

    @cached_property
    def _loaded(self) -> tuple[Any, ...]:
        config = self._config
        reference, variance = load_reference(config, self._artifact)
        if config.cluster.gpus_per_worker:
            reference.to("cuda")
        data = load_data(config.data, self._artifact.result["preprocessing"])
        return reference, variance, data, _kept_features(config, reference, data)


def _kept_features(
    config: RunConfig, reference: StagedNetwork, data: ImageData
) -> FeatureCache | None:
    if config.library.features == "compute":
        return None
    on_disk = config.library.features == "disk"
    return FeatureCache.build(reference, data, Path(tempfile.gettempdir()) if on_disk else None)


def _measured_precision(config: RunConfig, reference: Artifact) -> str:
    """On a worker, with its threads or its GPU."""
    torch.set_num_threads(max(int(config.cluster.cpus_per_worker), 1))
    network, _ = load_reference(config, reference)
    if config.cluster.gpus_per_worker:
        network.to("cuda")
    return measured_precision(network, config.library.batch_size)


def _identity(job: BlockJob) -> dict[str, Any]:
    return {"stage": job.stage, "block": job.spec.to_json()}


def _result(
    space: SearchSpace,
    jobs: Sequence[Sequence[BlockJob]],
    records: Mapping[str, Mapping[str, Any]],
    reused: int,
) -> dict[str, Any]:
    names = ("key", "block", "nsr", "params", "macs", "weights_sha256")
    found = [[records[job.key] for job in stage] for stage in jobs]
    good = [[record for record in stage if "failed" not in record] for stage in found]
    costs = [record["cost"] for stage in good for record in stage]
    return {
        "shapes": [[stage.shape.input, stage.shape.output] for stage in space.stages],
        "stages": [[{name: record[name] for name in names} for record in stage] for stage in good],
        "failed": [
            {name: record[name] for name in ("key", "stage", "block", "failed")}
            for stage in found
            for record in stage
            if "failed" in record
        ],
        "cost": {
            "image_passes": round(sum(cost["image_passes"] for cost in costs)),
            "worker_seconds": sum(cost["seconds"] for cost in costs),
            "blocks_reused": reused,
        },
    }


def _check_failures(run: Run, result: Mapping[str, Any]) -> None:
    for block in result["failed"]:
        spec = BlockSpec.from_json(block["block"])
        run.say(f"  {spec} in stage {block['stage']} failed and is left out: {block['failed']}")
    empty = [number for number, stage in enumerate(result["stages"]) if not stage]
    if empty:
        raise DonnaError(
            f"At least one block of every stage must be distilled, but all of stage {empty[0]} "
            "failed (see above). Lower library.learning_rate, or change the blocks of this stage."
        )
