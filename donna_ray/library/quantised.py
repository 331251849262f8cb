"""The library in int8: every block as a QDQ graph, with the NSR that it has then."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from device_farm.ending import one_line
from donna_ray.config import DevicePrecision, RunConfig
from donna_ray.data import ImageData, inputs_without_test
from donna_ray.distill.students import inverse_variance, noise_to_signal
from donna_ray.errors import DonnaError
from donna_ray.latency.lowering import exported_part, lowering_of
from donna_ray.latency.quantised import (
    CALIBRATED_ON,
    AnyLowering,
    QuantisedLowering,
    Range,
    as_inputs,
    borders,
    calibration_images,
    part_edges,
    part_inputs,
    quantised_part,
)
from donna_ray.library.step import library_store
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, build_block, record_id
from donna_ray.storage.artifacts import Artifact, Files, StepFolder, digest
from donna_ray.storage.records import RecordStore
from donna_ray.workers.spread import Unit, spread

__all__ = [
    "PartJob",
    "QuantiseParts",
    "calibration_facts",
    "lowering_in",
    "quantised_library",
]

_INT8 = "int8"
_MEASURED_ON = 1024  # validation images, at most: one after the other
_TOGETHER = 64  # images that the reference computes at once
_PARTS_A_UNIT = 16

Block = tuple[str, BlockSpec]
"""Key of its record in the library, and what it is."""


@dataclass(frozen=True)
class PartJob:
    """A part of networks to quantise.

    Attributes:
        key: of its record.
        number: 0 the stem, then the stages, the last one the head.
        block: None of the reference's own part.
    """

    key: str
    number: int
    block: Block | None = None


def calibration_facts(config: RunConfig) -> dict[str, Any]:
    """What, beside weights, decides what a network in int8 is."""
    data = inputs_without_test(config.data)
    return {"precision": _INT8, "images": CALIBRATED_ON, "data": data}


def quantised_library(run: Run, reference: Artifact, library: Artifact) -> Artifact:
    """A library whose blocks are in int8: quantised on the workers, and their NSR measured.

    The ranges of the borders between the parts are those of the reference. The result is that of
    the library with other NSR; a block's `graph` is the key of its QDQ graph, as are `own` of the
    reference's own parts, stem to head.

    Raises:
        DonnaError: a block cannot be quantised.
    """
    facts = {**calibration_facts(run.config), "borders": _borders(run, reference)}
    common = {**facts, "reference": reference_identity(reference)}
    stages = [
        [
            PartJob(digest({**common, "block": block["key"]}), number, _named(block))
            for block in stage
        ]
        for number, stage in enumerate(library.result["stages"], start=1)
    ]
    own = [PartJob(digest({**common, "part": number}), number) for number in range(len(stages) + 2)]
    jobs = [*(job for stage in stages for job in stage), *own]
    store = _store(run)

    def compute(_folder: Any) -> tuple[dict[str, Any], Files]:
        known = store.records()
        missing = [job for job in jobs if job.key not in known]
        run.say(f"  {len(jobs) - len(missing)} of {len(jobs)} parts are quantised already")
        starts = range(0, len(missing), _PARTS_A_UNIT)
        packs = [missing[start : start + _PARTS_A_UNIT] for start in starts]
        units = [Unit(pack, weight=len(pack)) for pack in packs]
        work = QuantiseParts(run.config, reference, library_store(run), store, facts["borders"])
        done = spread(run, "library/int8", "parts", units, work)
        images = sum(each["images"] for each in done)
        return _result(run, library, stages, own, store, images), []

    def intact(_artifact: Artifact) -> bool:
        known = store.records()
        return all(job.key in known for job in jobs)

    inputs = {"parts": [job.key for job in jobs], "library": library.digest}
    return run.step("library/int8", inputs, compute, intact)


def lowering_in(
    precision: DevicePrecision,
    run: Run,
    reference: Artifact,
    library: Artifact,
    teacher: StagedNetwork,
) -> AnyLowering:
    """To the models that are measured in a precision, given the library in it."""
    if precision == "fp32":
        return lowering_of(run, reference, teacher)
    blocks = [
        {record_id(BlockSpec.from_json(block["block"])): block["graph"] for block in stage}
        for stage in library.result["stages"]
    ]
    return QuantisedLowering(_store(run), library.result["own"], blocks)


class QuantiseParts:
    """Quantises parts on a worker, measures the NSR of blocks, and stores them.

    Args:
        config: of the run.
        reference: of ``reference_step``.
        blocks: of the library.
        store: of the quantised parts.
        ranges: of the borders, see ``borders``.
    """

    def __init__(
        self,
        config: RunConfig,
        reference: Artifact,
        blocks: RecordStore,
        store: RecordStore,
        ranges: Sequence[Range],
    ) -> None:
        self._config, self._artifact = config, reference
        self._blocks, self._store, self._ranges = blocks, store, ranges

    def __call__(self, jobs: Sequence[PartJob]) -> dict[str, Any]:
        """Do some parts, but those that are stored already; tells how many `images` that took."""
        jobs = [job for job in jobs if self._store.get(job.key) is None]
        models = [self._quantised(job) for job in jobs]
        ratios, images = self._noise(jobs, models)
        for job, model, nsr in zip(jobs, models, ratios, strict=True):
            self._store.put(job.key, {"part": job.number, "nsr": nsr}, {}, {"onnx": model})
        return {"images": images + len(self._loaded[3][0])}

    def _quantised(self, job: PartJob) -> bytes:
        reference, _, _, inputs = self._loaded
        parts = len(reference.stages) + 2
        values = inputs[job.number]
        name, edges = f"part{job.number}", part_edges(job.number, parts)
        part = exported_part(self._module(job), values.shape[1:], name, edges)
        ranges = self._ranges[job.number : job.number + 2]
        try:
            made = quantised_part(part, as_inputs(values), ranges)
        except Exception as error:  # ONNX Runtime's errors share no base class
            what = "the reference's own" if job.block is None else job.block[1]
            raise DonnaError(
                f"Every part must be quantised with device.precision: int8, but {what} (part "
                f"{job.number}) cannot be: {one_line(str(error))}. Leave it out of the space, or "
                "search in fp32."
            ) from error
        return made.SerializeToString(deterministic=True)

    def _module(self, job: PartJob) -> nn.Module:
        reference = self._loaded[0]
        if job.block is None:
            return [reference.stem, *reference.stages, reference.head][job.number]
        key, spec = job.block
        block = build_block(spec, reference.shapes[job.number - 1])
        block.load_state_dict(self._blocks.weights(key))
        return block.requires_grad_(False).eval()

    @torch.no_grad()
    def _noise(
        self, jobs: Sequence[PartJob], models: Sequence[bytes]
    ) -> tuple[list[float | None], int]:
        """The NSR of what stands in a stage (None of stem and head), and of how many images."""
        reference, weights, data, _ = self._loaded
        networks = [
            (job.number, OnnxNetwork(model)) if 0 < job.number <= len(weights) else None
            for job, model in zip(jobs, models, strict=True)
        ]
        measured = data.validation.portions(_MEASURED_ON, _MEASURED_ON)[0]  # of all classes
        total, count = [0.0] * len(jobs), 0
        for images, _ in measured.batches(_TOGETHER):
            features = reference.features(images)
            for index, network in enumerate(networks):
                if network is not None:
                    number, model = network
                    output = model(features[number - 1])
                    ratio = noise_to_signal(output, features[number], weights[number - 1])
                    total[index] += len(images) * float(ratio)
            count += len(images)
        ratios = [
            None if network is None else sum_ / count
            for network, sum_ in zip(networks, total, strict=True)
        ]
        return ratios, count

    @cached_property
    def _loaded(self) -> tuple[StagedNetwork, list[Tensor], ImageData, list[Tensor]]:
        """The reference, the weights of its channels in the NSR, images, and inputs of parts."""
        reference, variance = load_reference(self._config, self._artifact)
        data = data_of(self._config, self._artifact)
        inputs = part_inputs(reference, calibration_images(data.calibration))
        return reference, list(map(inverse_variance, variance)), data, inputs


@dataclass(frozen=True)
class _Borders:
    """Measures them on a worker."""

    config: RunConfig
    reference: Artifact

    def __call__(self, _nothing: None) -> dict[str, Any]:
        network, _ = load_reference(self.config, self.reference)
        images = calibration_images(data_of(self.config, self.reference).calibration)
        return {"borders": borders(part_inputs(network, images))}


def _borders(run: Run, reference: Artifact) -> list[Range]:
    """Measured once: workers that differ in their last bits would give a border two scales."""
    inputs = {**calibration_facts(run.config), "reference": reference_identity(reference)}
    folder = StepFolder(run.root, "library/borders", inputs)
    artifact = folder.load()
    if artifact is None:
        (found,) = spread(run, "borders", "network", [Unit(None)], _Borders(run.config, reference))
        artifact = folder.commit(found, [], 0.0)
    return [(least, most) for least, most in artifact.result["borders"]]


def _store(run: Run) -> RecordStore:
    return library_store(run).within(_INT8)


def _named(block: dict[str, Any]) -> Block:
    return block["key"], BlockSpec.from_json(block["block"])


def _result(
    run: Run,
    library: Artifact,
    stages: Sequence[Sequence[PartJob]],
    own: Sequence[PartJob],
    store: RecordStore,
    images: int,
) -> dict[str, Any]:
    known = store.records()
    made = [
        [
            {**block, "nsr": known[job.key]["nsr"], "graph": job.key}
            for block, job in zip(blocks, jobs, strict=True)
        ]
        for blocks, jobs in zip(library.result["stages"], stages, strict=True)
    ]
    ratios = [[block["nsr"] for block in stage] for stage in made]
    ranges = (f"{min(stage):.2f} to {max(stage):.2f}" for stage in ratios)
    run.say(f"  NSR of the blocks in int8, by stage: {', '.join(ranges)}")
    return {
        "shapes": library.result["shapes"],
        "stages": made,
        "own": [job.key for job in own],
        "cost": {"image_passes": images},
    }
