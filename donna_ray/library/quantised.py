"""The library in int8: every block as a QDQ graph, with the NSR that it has then."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx
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
    VERSION,
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
from donna_ray.library.step import library_step, library_store
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.identity import reference_identity
from donna_ray.reference.load import data_of, load_reference
from donna_ray.reference.network import StagedNetwork
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, build_block, record_id
from donna_ray.storage.artifacts import Artifact, Files, StepFolder, digest
from donna_ray.storage.records import Record, RecordStore
from donna_ray.workers.faults import is_of_the_unit
from donna_ray.workers.spread import Unit, spread

__all__ = [
    "PartJob",
    "QuantiseParts",
    "calibration_facts",
    "check_reference_in_int8",
    "left_out",
    "libraries",
    "lowering_in",
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
    return {"precision": _INT8, "version": VERSION, "images": CALIBRATED_ON, "data": data}


@contextmanager
def left_out(store: RecordStore, key: str, record: Mapping[str, Any]) -> Iterator[None]:
    """If this raises and what is quantised is at fault, it has failed and the others go on.

    Args:
        store: of what is quantised.
        key: of its record.
        record: what it has beside the reason (`failed`).
    """
    try:
        yield
    except Exception as error:  # ONNX Runtime's errors share no base class
        if not is_of_the_unit(error):
            raise
        why = f"it cannot be quantised: {type(error).__name__}: {one_line(str(error))}"
        store.put_failed(key, why, record)


def check_reference_in_int8(reason: str | None, whose: str = "the reference") -> None:
    """Refuse to go on without what every network is held against.

    Args:
        reason: why it cannot be quantised; None where it can.
        whose: what of it.

    Raises:
        DonnaError: there is a reason.
    """
    if reason is not None:
        raise DonnaError(
            f"The reference must be quantised with device.precision: int8, but of {whose} {reason}."
            " Choose another model, or search in fp32."
        )


def libraries(run: Run, reference: Artifact) -> dict[DevicePrecision, Artifact]:
    """Step 2: the library in fp32, and in int8 where a scenario is in it.

    A block that cannot be quantised is in neither then, for all scenarios search one space.

    Raises:
        DonnaError: see ``library_step``; or what every network needs cannot be quantised.
    """
    library = library_step(run, reference)
    if not run.config.in_int8:
        return {"fp32": library}
    quantised = _quantised_library(run, reference, library)
    return {"fp32": _within(library, quantised), "int8": quantised}


def _within(library: Artifact, quantised: Artifact) -> Artifact:
    """The library without the blocks that cannot be quantised."""
    failed = quantised.result["failed"]
    if not failed:
        return library
    left_out = {block["key"] for block in failed}
    stages = [
        [block for block in stage if block["key"] not in left_out]
        for stage in library.result["stages"]
    ]
    every = [*library.result["failed"], *failed]
    return replace(library, result={**library.result, "stages": stages, "failed": every})


def _quantised_library(run: Run, reference: Artifact, library: Artifact) -> Artifact:
    """A library whose blocks are in int8: quantised on the workers, and their NSR measured.

    The ranges of the borders between the parts are those of the reference. The result is that of
    the library with other NSR; a block's `graph` is the key of its QDQ graph, as are `own` of the
    reference's own parts, stem to head. What cannot be quantised is in `failed`.
    """
    facts = {**calibration_facts(run.config), "borders": _borders(run, reference)}
    common = {**facts, "reference": reference_identity(reference)}
    stages = [
        [
            PartJob(
                digest({**common, "block": block["weights_sha256"]}),
                number,
                (block["key"], BlockSpec.from_json(block["block"])),
            )
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
    if precision != "int8":
        return lowering_of(run, reference, teacher, half=precision == "fp16")
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
        models: dict[PartJob, bytes] = {}
        networks: dict[PartJob, OnnxNetwork] = {}
        for job in jobs:
            part, values = self._part(job)
            with left_out(self._store, job.key, {"part": job.number}):
                models[job] = self._quantised(job, part, values)
                networks[job] = OnnxNetwork(models[job])
        ratios, images = self._noise(networks)
        for job, nsr in ratios.items():
            self._store.put(job.key, {"part": job.number, "nsr": nsr}, {}, {"onnx": models[job]})
        return {"images": images + len(self._loaded[3][0])}

    def _part(self, job: PartJob) -> tuple[onnx.ModelProto, Tensor]:
        """In float, and its inputs."""
        reference, _, _, inputs = self._loaded
        values = inputs[job.number]
        edges = part_edges(job.number, len(reference.stages) + 2)
        name = f"part{job.number}"
        return exported_part(self._module(job), values.shape[1:], name, edges), values

    def _quantised(self, job: PartJob, part: onnx.ModelProto, values: Tensor) -> bytes:
        ranges = self._ranges[job.number : job.number + 2]
        made = quantised_part(part, as_inputs(values), ranges)
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
        self, networks: Mapping[PartJob, OnnxNetwork]
    ) -> tuple[dict[PartJob, float | None], int]:
        """The NSR of what stands in a stage (None of stem and head), and of how many images.

        Of a part that fails, or whose output is not finite, there is none.
        """
        reference, weights, data, _ = self._loaded
        within = {job: each for job, each in networks.items() if 0 < job.number <= len(weights)}
        measured = data.validation.portions(_MEASURED_ON, _MEASURED_ON)[0]  # of all classes
        total, count = dict.fromkeys(within, 0.0), 0
        for images, _ in measured.batches(_TOGETHER):
            features = reference.features(images)
            for job in list(total):
                with left_out(self._store, job.key, {"part": job.number}):
                    before = total.pop(job)
                    output = within[job](features[job.number - 1])
                    ratio = noise_to_signal(output, features[job.number], weights[job.number - 1])
                    total[job] = before + len(images) * _finite(float(ratio))
            count += len(images)
        ratios = {job: total[job] / count for job in total}
        return {**dict.fromkeys(networks.keys() - within.keys()), **ratios}, count

    @cached_property
    def _loaded(self) -> tuple[StagedNetwork, list[Tensor], ImageData, list[Tensor]]:
        """The reference, the weights of its channels in the NSR, images, and inputs of parts."""
        reference, variance = load_reference(self._config, self._artifact)
        data = data_of(self._config, self._artifact)
        inputs = part_inputs(reference, calibration_images(data.calibration))
        return reference, list(map(inverse_variance, variance)), data, inputs


def _finite(ratio: float) -> float:
    if not math.isfinite(ratio):
        raise ValueError(f"its noise-to-signal ratio must be finite, but is {ratio}")
    return ratio


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
        work = _Borders(run.config, reference)
        (found,) = spread(run, "library/borders", "network", [Unit(None)], work)
        artifact = folder.commit(found, [], 0.0)
    return [(least, most) for least, most in artifact.result["borders"]]


def _store(run: Run) -> RecordStore:
    return library_store(run).within(_INT8)


def _result(
    run: Run,
    library: Artifact,
    stages: Sequence[Sequence[PartJob]],
    own: Sequence[PartJob],
    store: RecordStore,
    images: int,
) -> dict[str, Any]:
    known = store.records()
    _check_failures(run, stages, own, known)
    pairs = [
        [(block, job, known[job.key]) for block, job in zip(blocks, jobs, strict=True)]
        for blocks, jobs in zip(library.result["stages"], stages, strict=True)
    ]
    made = [
        [
            {**block, "nsr": record["nsr"], "graph": job.key}
            for block, job, record in stage
            if "failed" not in record
        ]
        for stage in pairs
    ]
    failed = [
        {"key": block["key"], "stage": number, "block": block["block"], "failed": record["failed"]}
        for number, stage in enumerate(pairs)
        for block, _, record in stage
        if "failed" in record
    ]
    ratios = [[block["nsr"] for block in stage] for stage in made]
    ranges = (f"{min(stage):.2f} to {max(stage):.2f}" for stage in ratios)
    run.say(f"  NSR of the blocks in int8, by stage: {', '.join(ranges)}")
    return {
        "shapes": library.result["shapes"],
        "stages": made,
        "failed": failed,
        "own": [job.key for job in own],
        "cost": {"image_passes": images},
    }


def _check_failures(
    run: Run,
    stages: Sequence[Sequence[PartJob]],
    own: Sequence[PartJob],
    known: Mapping[str, Record],
) -> None:
    """Say what is left out; refuse to go on without what every network needs."""
    for number, stage in enumerate(stages):
        reasons = {job: known[job.key].get("failed") for job in stage}
        for job, reason in reasons.items():
            if reason and job.block:
                run.say(f"  {job.block[1]} in stage {number} is left out: {reason}")
        if all(reasons.values()):
            raise DonnaError(
                f"At least one block of every stage must be quantised with device.precision: int8, "
                f"but none of stage {number} can be (see above). Add other blocks to this stage, "
                "or search in fp32."
            )
    for job in own:
        check_reference_in_int8(known[job.key].get("failed"), f"its part {job.number}")
