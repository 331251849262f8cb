"""What is measured on a worker before a library is distilled: precision, time and memory."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from donna_ray.config import LibraryConfig, RunConfig
from donna_ray.distill.features import Teacher
from donna_ray.distill.precision import step_cost
from donna_ray.distill.students import BlockJob, errors_of_a_block
from donna_ray.errors import BlockError, MemoryLimitError
from donna_ray.library.measure import on_worker, settled_precision, worker_kind
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.space import build_block, record_id
from donna_ray.storage.artifacts import Artifact, Files
from donna_ray.training.engine import Engine, MemoryBatch
from donna_ray.training.loop import seeded

__all__ = ["PackCosts", "decided", "pack_costs", "seconds_of", "with_epochs"]

_CPU_PACK = 16
_LARGEST_PACK = 64  # what a worker's death costs grows with it, what is shared in it no longer does
_WORTH = 10  # times more blocks than are measured must there be
_USED_SHARE = 0.8  # of a worker's part of a GPU's memory
_BYTES = 16  # a parameter in float32, its gradient and AdamW's two moments
_REPEATS = 3

PackCosts = dict[str, Any]
"""`pack_size`; `blocks`: stage, family, MACs and seconds of a step of those measured; and `seconds`
that the measuring took."""


def decided(run: Run, reference: Artifact) -> RunConfig:
    """The configuration with `library.precision` decided, and `library.steps` made epochs."""
    library = with_epochs(run.config.library, reference)
    if library.precision == "auto":
        settled = settled_precision(run, reference)
        library = library.model_copy(update={"precision": settled})
    return run.config.model_copy(update={"library": library})


def with_epochs(library: LibraryConfig, reference: Artifact) -> LibraryConfig:
    """With `library.steps` made epochs."""
    if library.steps is None:
        return library
    of_a_pass = max(reference.result["images"]["distillation"] // library.batch_size, 1)
    epochs = math.ceil(library.steps / of_a_pass)
    return library.model_copy(update={"epochs": epochs, "steps": None})


def pack_costs(
    run: Run, config: RunConfig, reference: Artifact, jobs: Sequence[BlockJob], macs: Sequence[int]
) -> PackCosts:
    """What packs of these blocks cost: measured where that is worth it or a GPU needs it.

    Of each stage and family the cheapest, the middle and the most expensive block do a few steps.
    They are not measured if that would be over a tenth of the blocks; MACs then stand for seconds.

    Args:
        run: for the cluster.
        config: with its precision decided.
        reference: the features' source.
        jobs: the blocks to distil, at least one.
        macs: of each.
    """
    chosen = _representatives(jobs, macs)
    library, on_gpu = config.library, config.cluster.gpus_per_worker > 0
    size_is_open = on_gpu and library.pack_size is None
    if len(jobs) < _WORTH * len(chosen) and not size_is_open:
        return {"pack_size": library.pack_size or _CPU_PACK, "blocks": [], "seconds": 0.0}
    samples = [(jobs[index], macs[index]) for index in chosen]
    inputs = {
        "reference": reference_identity(reference),
        "cluster": worker_kind(config),
        "blocks": [[job.stage, record_id(job.spec), cost] for job, cost in samples],
        "step": [library.batch_size, library.precision, library.pack_size],
    }

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        return on_worker(run, reference, _measured, config, samples), []

    artifact = run.step("library/costs", inputs, compute)
    return {**artifact.result, "seconds": artifact.seconds}


def seconds_of(costs: PackCosts) -> Callable[[BlockJob, int], float]:
    """The cost of a block, given its MACs: between those measured of its stage and family.

    In seconds of a training step; in MACs where nothing was measured.
    """
    curves: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for stage, family, *point in costs["blocks"]:
        curves[stage, family].append(tuple(point))

    def seconds(job: BlockJob, macs: int) -> float:
        curve = sorted(curves[job.stage, job.spec.family]) if curves else []
        known, times = np.array(curve or [(macs, macs)], dtype=float).T
        return float(np.interp(macs, known, times))

    return seconds


def _representatives(jobs: Sequence[BlockJob], macs: Sequence[int]) -> list[int]:
    """Indices of the cheapest, the middle and the most expensive of each stage and family."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index in sorted(range(len(jobs)), key=lambda index: macs[index]):
        groups[jobs[index].stage, jobs[index].spec.family].append(index)
    return [
        index
        for group in groups.values()
        for index in sorted({group[0], group[len(group) // 2], group[-1]})
    ]


def _measured(
    reference: StagedNetwork, config: RunConfig, samples: Sequence[tuple[BlockJob, int]]
) -> PackCosts:
    """As ``pack_costs``; the peak of the memory is the reference's forward's or a block's step's.

    A block that does not fit the memory, or raises, is left out: it fails when it is distilled.
    """
    library, engine = config.library, Engine.of(reference).at(config.library.precision)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(library.batch_size, *reference.input_shape, generator=generator)
    on_gpu, device = engine.device.type == "cuda", engine.device
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    features = Teacher(reference, engine)(images, range(len(reference.stages)))
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    held = torch.cuda.memory_allocated(device) if on_gpu else 0
    blocks = []
    for job, macs in samples:
        with suppress(MemoryLimitError, BlockError):
            seconds, used = _step_cost(job, reference, features[job.stage], engine)
            blocks.append([job.stage, job.spec.family, macs, seconds])
            peak = max(peak, held + used)
    size = library.pack_size or _CPU_PACK
    if on_gpu and library.pack_size is None:
        total = torch.cuda.get_device_properties(device).total_memory
        part = _USED_SHARE * min(config.cluster.gpus_per_worker, 1) * total
        size = _fitting(part - peak, samples, reference)
    return {"pack_size": size, "blocks": blocks}


def _step_cost(
    job: BlockJob, reference: StagedNetwork, features: Tensor, engine: Engine
) -> tuple[float, int]:
    """Seconds of a training step of a block, and bytes that it adds to a GPU's memory."""
    with seeded(0):
        block = engine.place(build_block(job.spec, reference.shapes[job.stage])).train()
    memory = MemoryBatch(2)
    with errors_of_a_block():
        runs = [step_cost(block, features, engine.precision, memory) for _ in range(_REPEATS + 1)]
    return min(seconds for seconds, _ in runs[1:]), runs[-1][1]


def _fitting(free: float, samples: Sequence[tuple[BlockJob, int]], reference: StagedNetwork) -> int:
    """How many blocks of the largest measured size fit into so many bytes."""
    blocks = [build_block(job.spec, reference.shapes[job.stage]) for job, _ in samples]
    largest = max(sum(value.numel() for value in block.parameters()) for block in blocks)
    return int(min(max(free // (_BYTES * largest), 1), _LARGEST_PACK))
