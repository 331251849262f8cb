"""Measures what a plan is computed from: a few packs, networks and candidates, each for a while.

They run where the run itself would: on Ray Train workers and on the device. The reference is the
run's own, and kept for it, as is what a worker measures before it distils.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from donna_ray.config import RunConfig
from donna_ray.data import load_data
from donna_ray.distill.students import BlockJob
from donna_ray.errors import DonnaError
from donna_ray.finetune.step import settled
from donna_ray.latency.lowering import Lowering
from donna_ray.latency.recorded import RECORDED
from donna_ray.latency.starting import start_farm
from donna_ray.library.costs import decided, pack_costs, seconds_of
from donna_ray.library.measure import precision_artifact
from donna_ray.library.step import library_jobs
from donna_ray.plan.parts import PlanPart, check_images
from donna_ray.plan.plan import (
    Block,
    Costs,
    Images,
    NetworkCost,
    PackCost,
    Plan,
    ReferenceCost,
    makespan,
)
from donna_ray.reference.build import build_reference
from donna_ray.reference.load import data_of, load_reference, space_of
from donna_ray.reference.step import reference_step
from donna_ray.run.run import Run
from donna_ray.search.tuner import evaluate_nothing
from donna_ray.space import UNSHRUNK, SearchSpace, check_space
from donna_ray.storage.artifacts import Artifact
from donna_ray.workers.pool import fitting, pool_of
from donna_ray.workers.spread import Unit, spread
from donna_ray.workers.train_run import worker_bundle

__all__ = ["measured_plan"]

_NETWORKS = 2  # a worker
_CANDIDATES = 8


def measured_plan(run: Run) -> Plan:
    """Do a few parts of a run, on the cluster that it would have.

    Raises:
        DonnaError: no node has room for a worker, or there are too few images to measure with.
    """
    _, preprocessing = build_reference(run.config, load_weights=False)
    check_images(run.config, load_data(run.config.data, preprocessing))
    reference = reference_step(run)
    started = time.perf_counter()
    run.connect()
    preparation = time.perf_counter() - started
    if run.config.library.precision == "auto":
        preparation += precision_artifact(run, reference).seconds
    space = space_of(run.config, reference)
    config = decided(run, reference)
    every = [job for stage in library_jobs(run.config, reference, space) for job in stage]
    found = [cost["macs"] for stage in check_space(space) for cost in stage]
    distilled = [each for each in zip(every, found, strict=True) if each[0].spec != UNSHRUNK]
    jobs, macs = [job for job, _ in distilled], [cost for _, cost in distilled]
    sizes = pack_costs(run, config, reference, jobs, macs)
    seconds = seconds_of(sizes)
    costs = [seconds(job, cost) for job, cost in zip(jobs, macs, strict=True)]
    size, order = min(sizes["pack_size"], len(jobs)), np.argsort(costs).tolist()
    packs = [order[:size], order[-size:]]  # the cheapest and the most expensive
    start, facts = _measure_on_workers(run, config, reference, space, jobs, packs)
    sums = [sum(costs[index] for index in pack) for pack in packs]
    search, candidate, lowering, kept = _search_costs(run, reference, space)
    run.say(f"  its parts were measured in {time.perf_counter() - started:.0f} s")
    return Plan(
        config=config,
        costs=Costs(
            reference=_reference_cost(reference, config),
            preparation=preparation + sizes["seconds"],
            start=start,
            pack=_pack_cost(sums, [each["packs"] for each in facts if "packs" in each]),
            network=_network_cost([each["network"] for each in facts if "network" in each]),
            candidate=candidate,
            lowering=lowering,
            search=search,
        ),
        images=Images.of(data_of(config, reference)),
        blocks=[
            Block(cost, config.library.recipe_of(job.spec.family).epochs)
            for job, cost in zip(jobs, costs, strict=True)
        ],
        pack_size=size,
        workers_per_node=_workers_per_node(config),
        keeps_workers=kept,
    )


def _measure_on_workers(
    run: Run,
    config: RunConfig,
    reference: Artifact,
    space: SearchSpace,
    jobs: Sequence[BlockJob],
    packs: Sequence[Sequence[int]],
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds that no unit accounts for, and the facts of the units.

    Every worker measures at once, as they work at once: what they share slows them here, too.
    """
    workers = config.cluster.workers
    payloads: list[tuple[str, Any]] = []
    payloads += [("packs", [[jobs[index] for index in pack] for pack in packs])] * workers
    architectures = space.sample(min(_NETWORKS * workers, space.size), config.seed)
    payloads += [("network", tuple(space.specs(each))) for each in architectures]
    pool_of(run).close()  # all are to start and measure at once
    started = time.perf_counter()
    part = PlanPart(config, reference, settled(run, reference, config.finetune))
    facts = spread(run, "plan", "parts", [Unit(each) for each in payloads], part)
    busy: dict[str, float] = {}
    for each in facts:
        busy[each["worker"]] = busy.get(each["worker"], 0.0) + each["busy"]
    return time.perf_counter() - started - max(busy.values()), facts


def _reference_cost(reference: Artifact, config: RunConfig) -> ReferenceCost:
    """As it was made, with `cluster.workers` of then."""
    cost = reference.result["cost"]
    training, parts = cost.get("training_seconds", 0.0), cost.get("measuring_seconds", [])
    measured = makespan(parts, config.cluster.workers)
    return ReferenceCost(max(reference.seconds - training - measured, 0.0), training, tuple(parts))


def _pack_cost(sums: Sequence[float], packs: Sequence[Sequence[dict[str, float]]]) -> PackCost:
    """Lines through what the light and the heavy pack cost, on the average over the workers.

    Args:
        sums: of the costs of the blocks of each.
        packs: of each worker, the facts of both.
    """

    def line(name: str) -> tuple[float, float]:
        light, heavy = np.mean([[pack[name] for pack in both] for both in packs], axis=0).tolist()
        return _line(sums, (light, heavy))

    (image, block), (tested, tested_block) = line("image"), line("validation")
    own = float(np.mean([pack["own"] for both in packs for pack in both]))
    reading = float(np.mean([pack["reading"] for both in packs for pack in both]))
    return PackCost(own, image, block, tested, tested_block, reading)


def _line(sums: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the line through two points, neither of them below 0.

    Where images take longer to decode than to train on, more blocks cost nothing more.
    """
    (few, many), (light, heavy) = sums, seconds
    slope = 0.0 if math.isclose(few, many) else (heavy - light) / (many - few)
    if slope <= 0:
        return (light + heavy) / 2, 0.0
    if light < slope * few:
        return 0.0, (light + heavy) / (few + many)
    return light - slope * few, slope


def _network_cost(networks: Sequence[dict[str, float]]) -> NetworkCost:
    own, image, tested = (
        float(np.mean([each[name] for each in networks])) for name in ("own", "image", "validation")
    )
    return NetworkCost(own, image, tested)


def _search_costs(
    run: Run, reference: Artifact, space: SearchSpace
) -> tuple[float, float, float, bool]:
    """Seconds of a search without candidates, of one on the device, and of lowering a block; and
    whether the workers are kept meanwhile."""
    teacher, _ = load_reference(run.config, reference)
    count = min(_CANDIDATES, space.size)
    candidates = [tuple(space.specs(each)) for each in space.sample(count, run.config.seed)]
    blocks = {(number, spec) for specs in candidates for number, spec in enumerate(specs)}
    with tempfile.TemporaryDirectory() as folder:
        lowering = Lowering(teacher, Path(folder), run.config.space.modules)
        started = time.perf_counter()
        models = [lowering.model(specs) for specs in candidates]
        lowered = (time.perf_counter() - started) / len(blocks)
        started = time.perf_counter()
        evaluate_nothing(run.root / "ray" / "plan-search")
        device, cache = run.config.all_scenarios()[0].device, Path(folder) / "measurements.sqlite"
        if device.connector == RECORDED:  # it answers at once
            return time.perf_counter() - started, 0.0, lowered, pool_of(run).is_running
        farm = start_farm(device, cache, run.say, pool_of(run).lend)
        try:
            farm.wait([farm.submit(models[0])])  # as the reference is measured first
            begun = time.perf_counter()
            farm.wait([farm.submit(model) for model in models[1:]])
            measured = (time.perf_counter() - begun) / max(count - 1, 1)
        finally:
            farm.close()
    return begun - started, measured, lowered, pool_of(run).is_running


def _workers_per_node(config: RunConfig) -> int:
    """How many workers fit on the node that has most room for them."""
    needed = worker_bundle(config.cluster)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((fitting(needed, node) for node in nodes), default=0)
    if not most:
        raise DonnaError(
            f"A node must have room for a worker ({needed}), but none of {nodes} has. Lower "
            "cluster.cpus_per_worker or gpus_per_worker, or add nodes."
        )
    return most
