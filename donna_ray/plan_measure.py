"""Measures what a plan is computed from: a few packs, networks and candidates, each for a while.

They run where the run itself would: on Ray Train workers and on the device. The reference is the
run's own, and kept for it.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray

from donna_ray.artifacts import Artifact
from donna_ray.assemble import untrained
from donna_ray.config import FinetuneRecipe, RunConfig
from donna_ray.cost import start_farm
from donna_ray.data import ImageData, Split, load_data
from donna_ray.data.images import Batch
from donna_ray.distill import distill_pack
from donna_ray.errors import DonnaError
from donna_ray.export import export_onnx, onnx_error
from donna_ray.finetune import distillation_loss
from donna_ray.library import library_jobs
from donna_ray.library_measure import decided_precision, pack_costs, seconds_of
from donna_ray.lowering import Lowering
from donna_ray.measure import settled_precision
from donna_ray.network import StagedNetwork
from donna_ray.plan import Block, Costs, Images, NetworkCost, PackCost, Plan
from donna_ray.reference import load_reference, reference_step, space_of
from donna_ray.run import Run
from donna_ray.space import BlockSpec, SearchSpace, check_space
from donna_ray.students import BlockJob
from donna_ray.train_run import worker_resources
from donna_ray.trainer import Trainer, calibrating
from donna_ray.training import accuracy, device_of, network_input
from donna_ray.workers import Unit, spread

__all__ = ["measured_plan"]

_SHORT, _LONG = 3, 12  # batches: the difference has neither start-up nor warm-up in it
_NETWORKS = 2  # a worker
_CANDIDATES = 8
_SEARCH_S = 8.0  # Ray Tune's own start and end (scripts/bench_plan.py shows what it is)


def measured_plan(run: Run) -> Plan:
    """Do a few parts of a run, on the cluster that it would have.

    Raises:
        DonnaError: no node has room for a worker.
    """
    reference = reference_step(run)
    space = space_of(run.config, reference)
    config = decided_precision(run, reference)
    jobs = [job for stage in library_jobs(config, reference, space) for job in stage]
    macs = [cost["macs"] for stage in check_space(space) for cost in stage]
    sizes = pack_costs(run, config, reference, jobs, macs)
    seconds = seconds_of(sizes)
    costs = [seconds(job, cost) for job, cost in zip(jobs, macs, strict=True)]
    size = min(sizes["pack_size"], len(jobs))
    packs = _light_and_heavy(costs, size)
    start, facts = _measure_on_workers(run, config, reference, space, jobs, packs)
    sums = [sum(costs[index] for index in pack) for pack in packs]
    candidate, lowering = _device_costs(run, reference, space)
    return Plan(
        config=config,
        costs=Costs(
            reference=reference.seconds,
            start=start,
            pack=_pack_cost(sums, facts),
            network=_network_cost(facts),
            candidate=candidate,
            lowering=lowering,
            search=_SEARCH_S,
        ),
        images=_images(config, reference),
        blocks=[
            Block(cost, config.library.recipe_of(job.spec.family).epochs)
            for job, cost in zip(jobs, costs, strict=True)
        ],
        pack_size=size,
        workers_per_node=_workers_per_node(config),
    )


def _light_and_heavy(costs: Sequence[float], size: int) -> list[list[int]]:
    """The indices of the cheapest and of the dearest pack of this size."""
    order = np.argsort(costs).tolist()
    return [order[:size], order[-size:]]


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
    for pack in packs:
        payloads += [("pack", [jobs[index] for index in pack])] * workers
    architectures = space.sample(min(_NETWORKS * workers, space.size), config.seed)
    payloads += [("network", tuple(space.specs(each))) for each in architectures]
    precision = settled_precision(run, reference)
    recipe = config.finetune
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": precision})
    started = time.perf_counter()
    facts = spread(
        run, "plan", "parts", [Unit(each) for each in payloads], _Part(config, reference, recipe)
    )
    busy: dict[str, float] = {}
    for each in facts:
        busy[each["worker"]] = busy.get(each["worker"], 0.0) + each["busy"]
    return time.perf_counter() - started - max(busy.values()), facts


class _Part:
    """Measures a pack or a network on a worker, on a part of the images."""

    def __init__(self, config: RunConfig, reference: Artifact, recipe: FinetuneRecipe) -> None:
        self._config, self._artifact, self._recipe = config, reference, recipe

    def __call__(self, payload: tuple[str, Any]) -> dict[str, Any]:
        worker = ray.get_runtime_context().get_actor_id()
        kind, what = payload
        _ = self._loaded  # by the first unit: that is a part of the start
        started = time.perf_counter()
        found = self._pack(what) if kind == "pack" else self._network(what)
        busy = time.perf_counter() - started
        return {"worker": worker, "busy": busy, "kind": kind, "size": len(what), **found}

    def _pack(self, jobs: list[BlockJob]) -> dict[str, float]:
        reference, variance, data = self._loaded
        library = self._config.library.model_copy(update={"epochs": 1, "recipes": {}})
        batch = library.batch_size

        def seconds(batches: int, tested: int) -> float:
            part = _part_of(data, batches * batch, tested * batch)
            return distill_pack(reference, variance, jobs, part, library, 0).seconds

        seconds(1, 1)
        short, long = seconds(_SHORT, 1), seconds(_LONG, 1)
        tested = seconds(_SHORT, _LONG)
        trained = _slope(short, long, data.distillation, batch)
        validation = _slope(short, tested, data.validation, batch, first=1)
        own = short - _SHORT * batch * trained - batch * validation
        return {"image": trained, "validation": validation, "own": max(own, 0.0), "cost": 0.0}

    def _network(self, specs: Sequence[BlockSpec]) -> dict[str, float]:
        reference, _, data = self._loaded
        network = untrained(reference, specs).requires_grad_(True).to(device_of(reference))
        loss, batch = distillation_loss(reference), self._recipe.batch_size

        def seconds(batches: int) -> float:
            part = _part_of(data, batches * batch, batch)
            trainer = Trainer(network, part, self._recipe, 0, loss)
            started = time.perf_counter()
            trainer.train_epoch()
            return time.perf_counter() - started

        seconds(1)
        trained = _slope(seconds(_SHORT), seconds(_LONG), data.train, batch)
        validation = _FirstImages.of(data.validation, _LONG * batch)
        accuracy(network, validation)
        started = time.perf_counter()
        accuracy(network, validation)
        tested = (time.perf_counter() - started) / len(validation)
        return {"image": trained, "validation": tested, "own": self._export(network, data)}

    @staticmethod
    def _export(network: StagedNetwork, data: ImageData) -> float:
        images, _ = next(data.validation.batches(16))
        started = time.perf_counter()
        network.cpu().eval()
        model = export_onnx(network, images.shape[1:])
        onnx_error(model, network, network_input(images, device_of(network)))
        return time.perf_counter() - started

    @cached_property
    def _loaded(self) -> tuple[Any, ...]:
        reference, variance = load_reference(self._config, self._artifact)
        if self._config.cluster.gpus_per_worker:
            reference.to("cuda")
        preprocessing = self._artifact.result["preprocessing"]
        return reference, variance, load_data(self._config.data, preprocessing)


@dataclass(frozen=True)
class _FirstImages(Split):
    """The first images of a split."""

    limit: int = 0

    @classmethod
    def of(cls, split: Split, limit: int) -> "_FirstImages":
        return cls(split.dataset, split.loader_workers, split.name, split.classes, limit=limit)

    def __len__(self) -> int:
        return min(self.limit, super().__len__())

    def _complete(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        count = 0
        for batch in batches:
            yield batch
            count += len(batch[1])
            if count >= len(self):
                return


def _part_of(data: ImageData, trained: int, tested: int) -> ImageData:
    return replace(
        data,
        train=_FirstImages.of(data.train, trained),
        distillation=_FirstImages.of(data.distillation, trained),
        validation=_FirstImages.of(data.validation, tested),
    )


def _slope(short: float, long: float, split: Split, batch: int, first: int = _SHORT) -> float:
    """Seconds an image, of two passes over the first images of a split."""
    more = min(_LONG * batch, len(split)) - min(first * batch, len(split))
    if more <= 0:
        raise DonnaError(
            f"A plan needs more than {first} batches of images to measure with, but {split.name} "
            f"has {len(split)} images in batches of {batch}. Lower the batch_size."
        )
    return max(long - short, 0.0) / more


def _pack_cost(sums: Sequence[float], facts: Sequence[dict[str, Any]]) -> PackCost:
    packs = [each for each in facts if each["kind"] == "pack"]
    half = len(packs) // len(sums)

    def line(name: str) -> tuple[float, float]:
        light, heavy = (
            float(np.mean([each[name] for each in part])) for part in (packs[:half], packs[half:])
        )
        if math.isclose(sums[0], sums[1]):
            return heavy, 0.0
        slope = max((heavy - light) / (sums[1] - sums[0]), 0.0)
        return max(light - slope * sums[0], 0.0), slope

    (image, block), (tested, tested_block) = line("image"), line("validation")
    own = float(np.mean([each["own"] for each in packs]))
    return PackCost(own, image, block, tested, tested_block)


def _network_cost(facts: Sequence[dict[str, Any]]) -> NetworkCost:
    networks = [each for each in facts if each["kind"] == "network"]
    own, image, tested = (
        float(np.mean([each[name] for each in networks])) for name in ("own", "image", "validation")
    )
    return NetworkCost(own, image, tested)


def _device_costs(run: Run, reference: Artifact, space: SearchSpace) -> tuple[float, float]:
    """Seconds of a candidate on the device, and of lowering a block."""
    teacher, _ = load_reference(run.config, reference)
    count = min(_CANDIDATES, space.size)
    candidates = [tuple(space.specs(each)) for each in space.sample(count, run.config.seed)]
    blocks = {(number, spec) for specs in candidates for number, spec in enumerate(specs)}
    with tempfile.TemporaryDirectory() as folder:
        lowering = Lowering(teacher, Path(folder), run.config.space.modules)
        started = time.perf_counter()
        models = [lowering.model(specs) for specs in candidates]
        lowered = (time.perf_counter() - started) / len(blocks)
        farm = start_farm(
            run.config.all_scenarios()[0].device, Path(folder) / "measurements.sqlite", run.say
        )
        try:
            farm.wait([farm.submit(models[0])])
            started = time.perf_counter()
            farm.wait([farm.submit(model) for model in models[1:]])
            measured = (time.perf_counter() - started) / max(count - 1, 1)
        finally:
            farm.close()
    return measured, lowered


def _images(config: RunConfig, reference: Artifact) -> Images:
    data = load_data(config.data, reference.result["preprocessing"])
    return Images(
        len(data.train),
        len(data.distillation),
        len(data.validation),
        calibrating(data.calibration),
    )


def _workers_per_node(config: RunConfig) -> int:
    """How many workers fit on the node that has most room for them."""
    needed = worker_resources(config.cluster)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = (
        min(int(node.get(name, 0) / amount + 1e-6) for name, amount in needed.items())
        for node in nodes
    )
    most = max(fitting, default=0)
    if not most:
        raise DonnaError(
            f"A node must have room for a worker ({needed}), but none of {nodes} has. Lower "
            "cluster.cpus_per_worker or gpus_per_worker, or add nodes."
        )
    return most
