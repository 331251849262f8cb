"""End-to-end finetuning under knowledge distillation, from distilled blocks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from donna_ray.config import FinetuneRecipe, amount_of
from donna_ray.data import inputs_without_test, origin_of_test
from donna_ray.errors import DonnaError
from donna_ray.finetune.asked import Libraries, asked_for, attempt_at, measured_points
from donna_ray.finetune.assemble import block_keys, library_space
from donna_ray.finetune.half import add_in_half, half_facts
from donna_ray.finetune.quantised import add_int8
from donna_ray.finetune.tested import tested
from donna_ray.finetune.work import FinetuneJob, FinetuneNetwork
from donna_ray.latency.figures import Latency, surely_ms
from donna_ray.library.measure import settled_precision
from donna_ray.library.quantised import calibration_facts
from donna_ray.library.step import library_store
from donna_ray.onnx_export import check_onnx_error
from donna_ray.reference.identity import reference_identity
from donna_ray.run.doubts import finetune_doubts
from donna_ray.run.run import Run
from donna_ray.space import Architecture, SearchSpace
from donna_ray.storage.artifacts import Artifact, Files, digest
from donna_ray.storage.files import folder_in
from donna_ray.storage.records import RecordStore
from donna_ray.training.checkpoints import Checkpoints
from donna_ray.workers.spread import Unit, spread

__all__ = [
    "finetune",
    "finetune_step",
    "jobs_of",
    "network_files",
    "network_store",
    "opponent",
    "settled",
    "spread_over",
    "trained",
    "within_budget",
]

_NETWORKS = "networks"
_FACTS = ("accuracy", "zero_shot_accuracy", "onnx_error")


def network_store(run: Run) -> RecordStore:
    """Where a run keeps its finetuned networks: record, weights and, beside them, ONNX."""
    return RecordStore(folder_in(run.shared.location, _NETWORKS))


def network_files(run: Run, jobs: Sequence[FinetuneJob]) -> list[Path]:
    """The files of finetuned networks, in the run folder."""
    return network_store(run).fetch([job.key for job in jobs], run.root / _NETWORKS)


def jobs_of(
    run: Run,
    reference: Artifact,
    keys: Sequence[Sequence[str]],
    space: SearchSpace,
    architectures: Sequence[Architecture],
    recipe: FinetuneRecipe,
) -> list[FinetuneJob]:
    """One job an architecture, keyed by all that decides its weights.

    Args:
        run: whose seed is used.
        reference: of ``reference_step``.
        keys: of the records of the blocks, in the order of the space's choices, a list a stage.
        space: of the architectures.
        architectures: to finetune.
        recipe: how.
    """
    key = _keys(run, reference, recipe)
    jobs = []
    for architecture in architectures:
        blocks = [stage[choice] for stage, choice in zip(keys, architecture, strict=True)]
        specs = tuple(space.specs(architecture))
        jobs.append(FinetuneJob(key(blocks), space.id_of(architecture), specs, tuple(blocks)))
    return jobs


def _keys(run: Run, reference: Artifact, recipe: FinetuneRecipe) -> Callable[[Any], str]:
    """The key of a network of blocks, given theirs."""
    training = recipe.model_dump(include=set(FinetuneRecipe.model_fields))
    identity = reference_identity(reference)
    common = {"reference": identity, "recipe": training, "seed": run.config.seed}
    return lambda blocks: digest({**common, "blocks": blocks})


def opponent(run: Run, reference: Artifact) -> FinetuneJob:
    """The reference, to be finetuned by the recipe of the networks that are compared with it."""
    key = _keys(run, reference, run.config.finetune)
    blocks = {"own": "the reference's", "data": inputs_without_test(run.config.data)}
    return FinetuneJob(key(blocks), "reference", (), ())


def finetune(
    run: Run, name: str, reference: Artifact, jobs: Sequence[FinetuneJob], recipe: FinetuneRecipe
) -> list[dict[str, Any]]:
    """Finetune the architectures that have no record yet, on Ray Train workers.

    Args:
        run: for the configuration, the folder and the cluster.
        name: of the step that asks, for the display.
        reference: teacher, and source of stem and head.
        jobs: what to finetune.
        recipe: how long and how fast.

    Returns:
        The record of each job, in order: `accuracy` and, of the distilled blocks as they are,
        `zero_shot_accuracy`, both over all validation images with BatchNorm recalibrated; `params`,
        `macs`, `onnx_error`, `epochs`, `cost`. Where the training failed it has the reason under
        `failed`, and none of these: see ``trained``.
    """
    store = network_store(run)
    again = store.try_again(job.key for job in jobs)
    if again:
        run.say(f"  {len(again)} networks did not fit the memory: they are tried again")
    missing = [job for job in jobs if store.get(job.key) is None]
    leftover = {job.key for job in jobs} - {job.key for job in missing}
    Checkpoints(store.within("unfinished")).remove(*leftover)
    run.say(f"  {len(jobs) - len(missing)} of {len(jobs)} networks are finetuned already")
    blocks = library_store(run)
    work = FinetuneNetwork(run.config, reference, settled(run, reference, recipe), blocks, store)
    units = [Unit(job) for job in missing]
    spread(run, name, "networks", units, work, workers_per_unit=recipe.workers_per_network)
    return [store.record(job.key) for job in jobs]


def trained(
    run: Run, name: str, jobs: Sequence[FinetuneJob], records: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Indices of the networks whose training did not fail; the others are said.

    Args:
        name: of the section of the configuration that has the recipe.

    Raises:
        DonnaError: they are fewer than half.
    """
    failed = [index for index, record in enumerate(records) if "failed" in record]
    for index in failed:
        identity, reason = jobs[index].architecture_id, records[index]["failed"]
        run.say(f"  {identity} is left out: {reason}")
    if 2 * len(failed) > len(records):
        raise DonnaError(
            f"At least half of the networks of {name} must be trained, but {len(failed)} of "
            f"{len(records)} could not be (see above). Lower {name}.learning_rate where they "
            "diverged, or give workers more memory."
        )
    return [index for index in range(len(records)) if index not in failed]


def finetune_step(
    run: Run,
    reference: Artifact,
    library: Artifact,
    search: Artifact,
    names: Sequence[str] = (),
    in_int8: Artifact | None = None,
) -> Artifact:
    """Step 5: finetune networks of each front, each to a file of weights and of ONNX.

    They are spread over the front, or chosen by `finetune.budgets`; and those that are asked for,
    by `finetune.architectures`, by these names or earlier. The result maps an architecture's id to
    its accuracies, of validation and test, and the paths of its files, relative to the run folder.
    It has the test accuracy of the reference, with both of it `finetuned` by the same recipe
    (`reference`), and the latency of the networks asked for (`asked`), by scenario. What they are
    in int8 (with the library `in_int8`) and in half precision: see ``add_int8``, ``add_in_half``.

    Raises:
        ConfigError: a name is of no network, or of more than one.
        DonnaError: none is within a budget, a named one cannot be measured, or a training failed.
    """
    recipe = run.config.finetune
    space = library_space(library)
    chosen = _chosen_of_all(run, search.result["scenarios"])
    store, names = network_store(run), [*recipe.architectures, *names]
    asked, named = asked_for(run, space, search, names, store)
    architectures = [*(tuple(point["architecture"]) for point in chosen), *asked.values()]
    architectures = list(dict.fromkeys(architectures))
    jobs = jobs_of(run, reference, block_keys(library), space, architectures, recipe)
    other = opponent(run, reference)
    inputs = {
        "networks": [job.key for job in jobs],
        "opponent": other.key,
        "searches": search.result["digests"],
        "test": origin_of_test(run.config.data),
    }
    if in_int8 is not None:
        inputs["int8"] = calibration_facts(run.config)
    if run.config.in_fp16:
        inputs["fp16"] = half_facts(run.config)
    if asked:
        blocks = ([spec.to_json() for spec in space.specs(each)] for each in asked.values())
        inputs["asked"] = list(blocks)
        inputs |= attempt_at(run, inputs, named)

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        libraries: Libraries = {"fp32": library, "fp16": library, "int8": in_int8 or library}
        points = {}
        if asked:
            points = measured_points(run, reference, libraries, search, asked, named)
        done, records = _compared(run, reference, jobs, other)
        found = _result(run, reference, done, records)
        files = network_files(run, done[:-1])
        if in_int8 is not None:
            files = [*files, *add_int8(run, reference, store, done, found)]
        if run.config.in_fp16:
            files = [*files, *add_in_half(run, reference, store, done, found)]
        return {**found, "asked": points}, files

    return run.step("finetune", inputs, compute)


def _result(
    run: Run,
    reference: Artifact,
    done: Sequence[FinetuneJob],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Of ``finetune_step``, given what ``_compared`` returns."""
    trained_keys = [(job.key, job.specs) for job in done]
    workers = run.config.finetune.workers_per_network
    given, *tests = tested(run, reference, network_store(run), trained_keys, workers)
    facts = [
        {name: record[name] for name in _FACTS} | test
        for record, test in zip(records, tests, strict=True)
    ]
    networks = {
        job.architecture_id: {
            **found,
            "key": job.key,
            "weights": f"networks/{job.key}.safetensors",
            "onnx": f"networks/{job.key}.onnx",
        }
        for job, found in zip(done[:-1], facts[:-1], strict=True)
    }
    passes = sum(record["cost"]["image_passes"] for record in records)
    passes += sum(each["test_images"] for each in (given, *tests))
    origin = origin_of_test(run.config.data)
    return {
        "networks": networks,
        "reference": {**given, "test_from": origin, "finetuned": facts[-1]},
        "cost": {"image_passes": passes},
        "doubts": _doubts_of(run, tests, given, reference.result["classes"]),
    }


def _compared(
    run: Run, reference: Artifact, jobs: Sequence[FinetuneJob], other: FinetuneJob
) -> tuple[list[FinetuneJob], list[dict[str, Any]]]:
    """The networks that could be trained, the reference among them as the last, and records."""
    *records, own = finetune(run, "finetune", reference, [*jobs, other], run.config.finetune)
    records = [_delivered(record) for record in records]
    indices = trained(run, "finetune", jobs, records)
    if "failed" in own:
        remedy = (
            "Free memory, or give the workers more: the same command tries it again."
            if own.get("for_memory")
            else "Lower finetune.learning_rate: what is too fast for the reference is so for the "
            "networks, which have its stem and head."
        )
        raise DonnaError(
            "The reference must be finetuned as the networks are, for a fair comparison, but its "
            f"training failed: {own['failed'].rstrip('.')}. {remedy}"
        )
    kept = [records[index] for index in indices]
    return [*(jobs[index] for index in indices), other], [*kept, own]


def _delivered(record: dict[str, Any]) -> dict[str, Any]:
    """The record, failed if its ONNX file computes something else."""
    try:
        check_onnx_error(record.get("onnx_error", 0.0))  # none, where the training failed
    except DonnaError as error:
        return {**record, "failed": str(error)}
    return record


def _doubts_of(
    run: Run, tests: Sequence[dict[str, Any]], reference: dict[str, Any], classes: int
) -> list[str]:
    """Say how accurate they are, the reference by the same recipe last; return the doubts."""
    *accuracies, other = (each["test_accuracy"] for each in tests)
    own, images = reference["test_accuracy"], reference["test_images"]
    run.say(
        f"  accuracy {min(accuracies):.2%} to {max(accuracies):.2%} of {images} test images, the "
        f"reference's {own:.2%}, and {other:.2%} when it is finetuned, too"
    )
    return finetune_doubts(accuracies, own, images, classes)


def _chosen_of_all(run: Run, scenarios: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of the fronts; a budget for which a front has none is said, and the others count.

    Raises:
        DonnaError: no front has a point for any budget.
    """
    budgets = run.config.finetune.budgets
    chosen, errors = [], list[str]()
    for name, found in scenarios.items():
        if budgets is None:
            chosen += spread_over(found["front"], run.config.finetune.networks)
        for budget in budgets or ():
            reference = found["reference_latency"]
            limit_ms = amount_of(budget, reference["median_ms"])
            unit = reference if budget.endswith("x") else None
            try:
                chosen.append(within_budget(found["front"], limit_ms, unit))
            except DonnaError as error:
                whose = "" if name == "default" else f"Scenario {name}: "
                errors.append(f"{whose}{error}")
    if errors and not chosen:
        raise DonnaError("\n".join(errors))
    for each in errors:
        run.say(f"  none is finetuned for a budget. {each}")
    return chosen


def within_budget(
    front: Sequence[dict[str, Any]], budget: float, unit: Latency | None = None
) -> dict[str, Any]:
    """The point of the highest predicted accuracy within a latency in ms, with 95% confidence.

    Args:
        unit: the latency of which the budget is a multiple, if it is one.

    Raises:
        DonnaError: no point is within it.
    """
    within = [point for point in front if surely_ms(point["latency"], unit) <= budget]
    if not within:
        least = min(surely_ms(point["latency"], unit) for point in front)
        raise DonnaError(
            f"finetune.budgets must be ones that the front has a network for, but is {budget:.4g} "
            f"ms and the fastest takes up to {least:.4g} ms (95% interval). Raise it to at least "
            "that."
        )
    return max(within, key=lambda point: point["predicted_accuracy"])


def spread_over(front: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` points of a front, evenly spaced in rank and with both ends; all if it has fewer.

    A single one is that of the highest predicted accuracy.
    """
    if len(front) <= count:
        return list(front)
    if count == 1:
        return [max(front, key=lambda point: point["predicted_accuracy"])]
    ranks = [round(index * (len(front) - 1) / (count - 1)) for index in range(count)]
    return [front[rank] for rank in ranks]


def settled(run: Run, reference: Artifact, recipe: FinetuneRecipe) -> FinetuneRecipe:
    """The recipe with its precision decided."""
    if recipe.precision != "auto":
        return recipe
    return recipe.model_copy(update={"precision": settled_precision(run, reference)})
