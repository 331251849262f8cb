"""Networks that a person asked for, beside those that are chosen of the front.

What was once finetuned because it was asked for is asked for in later runs of the folder, too: the
step's earlier artifacts name its blocks. If it cannot be measured then, for a new scenario say, it
is left out of that one; what this run is asked for by name must be measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from donna_ray.config import DeviceConfig, DevicePrecision
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import library_space
from donna_ray.latency.farm import LatencyFarm, Unmeasured
from donna_ray.latency.figures import Latency
from donna_ray.latency.quantised import AnyLowering
from donna_ray.latency.shifts import in_shifts
from donna_ray.latency.starting import start_farms
from donna_ray.library.quantised import lowering_in
from donna_ray.reference.load import load_reference
from donna_ray.run.run import Run
from donna_ray.space import Architecture, BlockSpec, SearchSpace, architecture_named
from donna_ray.storage.artifacts import Artifact, StepFolder, finished_inputs, read_json
from donna_ray.storage.records import RecordStore
from donna_ray.workers.pool import pool_of

__all__ = ["Libraries", "asked_for", "attempt_at", "measured_points"]

Blocks = Sequence[dict[str, Any]]
Specs = dict[str, list[BlockSpec]]
Libraries = Mapping[DevicePrecision, Artifact]


def asked_for(
    run: Run,
    space: SearchSpace,
    search: Artifact,
    names: Sequence[str],
    finetuned: RecordStore,
) -> tuple[dict[str, Architecture], set[str]]:
    """Networks by id, in its order: those named, and those that an earlier run was asked for; and
    the ids of those named.

    Names may be ids of what the searches looked at, and of what is finetuned, the predictor's
    samples among it.

    Raises:
        ConfigError: no network of the space, or more than one, has a name.
    """
    known = dict(_known(run, space, search, finetuned)) if names else {}
    named = {architecture_named(name, space, known) for name in names}
    wanted = set(named)
    earlier = [each for inputs in finished_inputs(run.root, "finetune") for each in _of(inputs)]
    for words, blocks in dict(earlier).items():
        architecture = _in_space(space, blocks)
        if architecture is None:
            run.say(f"  a network that was asked for is not in the space any more: {words}")
        else:
            wanted.add(architecture)
    asked = dict(sorted((space.id_of(each), each) for each in wanted))
    return asked, {space.id_of(each) for each in named}


def attempt_at(run: Run, inputs: dict[str, Any], named: set[str]) -> dict[str, int]:
    """What is added to the step's inputs: the number of the attempt to measure, but for the first.

    It is the one that was last made, or the next one if that left out what is named now.
    """
    finished = finished_inputs(run.root, "finetune")
    last = max((each.get("attempt", 0) for each in finished), default=0)
    attempt = {"attempt": last} if last else {}
    made = StepFolder(run.root, "finetune", {**inputs, **attempt}).load()
    points = [] if made is None else made.result.get("asked", {}).values()
    is_whole = all(named <= {each["id"] for each in own} for own in points)
    return attempt if is_whole else {"attempt": last + 1}


def _of(inputs: dict[str, Any]) -> Iterator[tuple[str, Blocks]]:
    """What a finished step was asked for: in words, and its blocks."""
    for blocks in inputs.get("asked", []):
        yield "; ".join(str(BlockSpec.from_json(each)) for each in blocks), blocks


def _known(
    run: Run, space: SearchSpace, search: Artifact, finetuned: RecordStore
) -> Iterator[tuple[str, Architecture]]:
    for file in search.result["candidates"].values():
        looked_at = read_json(run.root / file) or {}
        for each in (*looked_at.get("measured", ()), *looked_at.get("failed", ())):
            yield each["id"], tuple(each["architecture"])
    for record in finetuned.records().values():
        architecture = _in_space(space, record["blocks"])
        if architecture is not None:
            yield record["architecture"], architecture


def _in_space(space: SearchSpace, blocks: Blocks) -> Architecture | None:
    """The network of these blocks; None where a stage does not have its block."""
    specs = [BlockSpec.from_json(each) for each in blocks]
    if len(specs) != len(space.stages):
        return None
    stages = list(zip(space.stages, specs, strict=True))
    if any(spec not in stage.choices for stage, spec in stages):
        return None
    return tuple(stage.choices.index(spec) for stage, spec in stages)


def measured_points(
    run: Run,
    reference: Artifact,
    libraries: Libraries,
    search: Artifact,
    asked: dict[str, Architecture],
    named: set[str],
) -> dict[str, list[dict[str, Any]]]:
    """Networks by id with their latency, as the search of each scenario measured it, or now.

    Returns:
        By scenario, `id`, `architecture` and `latency` of each that can be measured.

    Raises:
        DonnaError: one that is `named` cannot be measured, or its device is out.
    """
    space = library_space(libraries["fp32"])
    found: dict[str, dict[str, Latency]] = {}
    for scenario, file in search.result["candidates"].items():
        measured = (read_json(run.root / file) or {}).get("measured", [])
        found[scenario] = {each["id"]: each["latency"] for each in measured if each["id"] in asked}
    missing = {
        scenario: {name: space.specs(each) for name, each in asked.items() if name not in there}
        for scenario, there in found.items()
    }
    for scenario, latencies in _measured(run, reference, libraries, missing).items():
        for name, latency in latencies.items():
            if not isinstance(latency, Unmeasured):
                found[scenario][name] = latency
            elif name in named:
                raise DonnaError(
                    f"A network that is asked for must be measured for each scenario, but for "
                    f"{scenario!r} {name} cannot be: {latency.reason}. Ask for another one, or "
                    "mend the device."
                )
            else:
                run.say(
                    f"  {name}, which an earlier run was asked for, is left out for {scenario}: "
                    f"{latency.reason}"
                )
    return {
        scenario: [
            {"id": name, "architecture": list(each), "latency": there[name]}
            for name, each in asked.items()
            if name in there
        ]
        for scenario, there in found.items()
    }


def _measured(
    run: Run, reference: Artifact, libraries: Libraries, missing: dict[str, Specs]
) -> dict[str, dict[str, Latency | Unmeasured]]:
    devices = {each.name: each.device for each in run.config.all_scenarios() if missing[each.name]}
    if not devices:
        return {}
    teacher, _ = load_reference(run.config, reference)
    lowerings = {
        name: lowering_in(each.precision, run, reference, libraries[each.precision], teacher)
        for name, each in devices.items()
    }
    space = library_space(libraries["fp32"])
    run.connect()
    found: dict[str, dict[str, Latency | Unmeasured]] = {}
    for together in in_shifts(devices):
        own = {name: devices[name] for name in together}
        found |= _measured_at_once(run, own, lowerings, missing, space)
    return found


def _measured_at_once(
    run: Run,
    devices: dict[str, DeviceConfig],
    lowerings: Mapping[str, AnyLowering],
    missing: dict[str, Specs],
    space: SearchSpace,
) -> dict[str, dict[str, Latency | Unmeasured]]:
    cache = run.root / "search" / "measurements.sqlite"
    farms, failures = start_farms(devices, cache, run.say, pool_of(run).lend, space)
    try:
        asked = {
            scenario: {
                name: farm.submit(lowerings[scenario].model(own))
                for name, own in missing[scenario].items()
            }
            for scenario, farm in farms.items()
        }
        found = {
            scenario: {name: _settled(farms[scenario], each) for name, each in own.items()}
            for scenario, own in asked.items()
        }
    finally:
        for farm in farms.values():
            farm.close()
    for scenario, error in failures.items():
        found[scenario] = dict.fromkeys(missing[scenario], _out(error))
    return found


def _settled(farm: LatencyFarm, reference: Any) -> Latency | Unmeasured:
    try:
        (latency,) = farm.settle([reference])
    except DonnaError as error:
        return _out(error)
    return latency


def _out(error: DonnaError) -> Unmeasured:
    return Unmeasured(str(error), of_model=False)
