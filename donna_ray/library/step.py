"""The block library: every block of the space, distilled, with NSR, params, MACs and weights."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from donna_ray.complexity import complexity
from donna_ray.config import RunConfig
from donna_ray.data import inputs_without_test
from donna_ray.distill.features import kept_bytes
from donna_ray.distill.students import BlockJob
from donna_ray.errors import DonnaError
from donna_ray.library.costs import decided, with_epochs
from donna_ray.library.making import LibraryMaking, Records
from donna_ray.library.work import identity_of
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import load_reference, space_of
from donna_ray.run.doubts import library_doubts
from donna_ray.run.run import Run
from donna_ray.space import UNSHRUNK, BlockSpec, SearchSpace, check_space, record_id
from donna_ray.storage.artifacts import Artifact, Files, digest
from donna_ray.storage.records import RecordStore, block_store
from donna_ray.workers.spread import spread

__all__ = ["Jobs", "library_jobs", "library_step", "library_store"]


def library_store(run: Run) -> RecordStore:
    """Where a run's distilled blocks are: `library.store`, or a folder of the run."""
    return block_store(run.shared.location, run.config.library.store)


Jobs = Sequence[Sequence[BlockJob]]


def library_step(run: Run, reference: Artifact) -> Artifact:
    """Step 2: distil every block that has no record yet, on Ray Train workers.

    The reference's own stages are stored as they are.

    The result lists, for each stage, the blocks that could be distilled, in the order of the space
    (spec, record key, NSR, params, MACs); those that failed, with the reason; and those that
    `library.racing` paused, with their NSR so far.

    Raises:
        DonnaError: every block of a stage failed.
    """
    space = space_of(run.config, reference)
    jobs = library_jobs(run.config, reference, space)
    store, racing = library_store(run), run.config.library.racing
    inputs = {
        "blocks": [[job.key for job in stage] for stage in jobs],
        "store": run.config.library.store,
        **({"racing": racing.model_dump()} if racing else {}),
    }

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        config = decided(run, reference)
        again = store.try_again(job.key for stage in jobs for job in stage)
        if again:
            run.say(f"  {len(again)} blocks did not fit the memory: they are tried again")
        making = LibraryMaking(run, config, reference, store, jobs, check_space(space))
        count = sum(map(len, jobs))
        reused = count - len(making.missing())
        run.say(f"  {reused} of {count} blocks are there already")
        _keep_unshrunk(run, reference, store, making.missing())
        _say_features(run, reference, space)
        for each in making.rounds():
            with closing(each.watch):
                spread(run, each.name, "blocks", each.units, each.work, each.watch)
        result = _result(space, jobs, store.records(), making.paused)
        _check_failures(run, result)
        _check_size(run.config, result)
        ratios = [[block["nsr"] for block in stage] for stage in result["stages"]]
        ranges = (f"{min(stage):.2f} to {max(stage):.2f}" for stage in ratios)
        run.say(f"  NSR of the blocks, by stage: {', '.join(ranges)}")
        return {**result, "doubts": library_doubts(ratios)}, []

    def intact(artifact: Artifact) -> bool:
        known = store.records()
        blocks = (block for stage in artifact.result["stages"] for block in stage)
        return all(
            known.get(block["key"], {}).get("weights_sha256") == block["weights_sha256"]
            for block in blocks
        )

    return run.step("library", inputs, compute, intact)


def library_jobs(
    config: RunConfig, reference: Artifact, space: SearchSpace
) -> list[list[BlockJob]]:
    """One job a block, a list a stage, keyed by what the block is made from.

    What was measured or timed is in no key: with `library.precision: auto` a block in either
    precision is a good one.
    """
    library = with_epochs(config.library, reference)
    common = {
        "reference": reference_identity(reference),
        "data": inputs_without_test(config.data),
        "precision": library.precision,
        "batchnorm": "recalibrated",  # before the NSR; earlier blocks were not
        "first_weights": "inherited",  # likewise
        "seed": config.seed,
    }

    def job(number: int, spec: BlockSpec) -> BlockJob:
        recipe = library.recipe_of(spec.family).model_dump()
        block = {"stage": number, "block": record_id(spec), "recipe": recipe}
        return BlockJob(digest({**common, **block}), number, spec)

    return [
        [job(number, spec) for spec in stage.choices] for number, stage in enumerate(space.stages)
    ]


def _say_features(run: Run, reference: Artifact, space: SearchSpace) -> None:
    """What features that are kept take, before the first node has them."""
    features, images = run.config.library.features, reference.result["images"]
    if features != "compute":
        count = images["distillation"] + images["validation"]
        needed = kept_bytes([stage.shape for stage in space.stages], count)
        where = f"{needed / 2**30:.2f} GiB of each node's {features}"
        run.say(f"  the features of {count} images take {where}")


def _keep_unshrunk(
    run: Run, artifact: Artifact, store: RecordStore, jobs: Sequence[BlockJob]
) -> None:
    """Store the reference's own stages, which have no noise: their facts and weights are known."""
    own = [job for job in jobs if job.spec == UNSHRUNK]
    if not own:
        return
    reference, _ = load_reference(run.config, artifact)
    for job in own:
        stage, shape = reference.stages[job.stage], reference.shapes[job.stage]
        facts = {**identity_of(job), **complexity(stage, shape.input), "nsr": 0.0}
        cost = {"seconds": 0.0, "image_passes": 0}
        store.put(job.key, {**facts, "cost": cost}, stage.state_dict())


def _result(space: SearchSpace, jobs: Jobs, records: Records, paused: Records) -> dict[str, Any]:
    names = ("key", "block", "nsr", "params", "macs", "weights_sha256")
    found = [[records[job.key] for job in stage if job.key not in paused] for stage in jobs]
    good = [[record for record in stage if "failed" not in record] for stage in found]
    failed = [record for stage in found for record in stage if "failed" in record]
    every = [*(record for stage in good for record in stage), *paused.values()]
    return {
        "shapes": [[stage.shape.input, stage.shape.output] for stage in space.stages],
        "stages": [[_named(record, *names) for record in stage] for stage in good],
        "failed": [_named(record, "key", "stage", "block", "failed") for record in failed],
        "paused": [_named(each, "key", "stage", "block", "nsr") for each in paused.values()],
        "cost": {"image_passes": round(sum(each["cost"]["image_passes"] for each in every))},
    }


def _named(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: record[name] for name in names}


def _check_size(config: RunConfig, result: Mapping[str, Any]) -> None:
    size = math.prod(len(stage) for stage in result["stages"])
    if result["paused"] and size < config.predictor.samples:
        raise DonnaError(
            f"The blocks of the library must make at least predictor.samples = "
            f"{config.predictor.samples} networks, but after the race they make {size}. Raise "
            "library.racing.margin: what was paused goes on from where it was stopped."
        )


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
