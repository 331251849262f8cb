"""A small search on the latency of networks in int8, from quantised parts to the front."""

from __future__ import annotations

import errno
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from device_farm import Workload
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from donna_ray.config import RunConfig
from donna_ray.data import load_data
from donna_ray.distill.students import inverse_variance
from donna_ray.errors import DonnaError
from donna_ray.latency.quantised import (
    QuantisedLowering,
    borders,
    calibration_images,
    part_inputs,
    quantised_part,
)
from donna_ray.library import quantised as library_in_int8
from donna_ray.library.quantised import PartJob, QuantiseParts
from donna_ray.onnx_export import OnnxNetwork
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.search.exact.accuracy import AccuracyModel
from donna_ray.search.exact.front import nondominated
from donna_ray.search.study.problem import KnownCost, SearchProblem
from donna_ray.space import Architecture, SearchSpace, Stage, build_block, record_id
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import seeded
from tests.device.phone import Phone, perf_test
from tests.search_problems import drive, search_on

CHOICES = (0, 31)  # of each stage: the smallest block and the largest
QUICK = {"max_seconds": 0.02, "blocks": 2}


@pytest.fixture(scope="module")
def few(space: SearchSpace) -> SearchSpace:
    return SearchSpace(
        tuple(
            Stage(stage.shape, tuple(stage.choices[number] for number in CHOICES))
            for stage in space.stages
        )
    )


@pytest.fixture(scope="module")
def images(config: RunConfig) -> Tensor:
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    return calibration_images(data.calibration)[:32]


def parts_work(
    config: RunConfig,
    reference: StagedNetwork,
    few: SearchSpace,
    images: Tensor,
    folder: Path,
) -> tuple[QuantiseParts, RecordStore, list[list[PartJob]]]:
    """A worker's work on untrained blocks, where it leaves them, and its jobs, a list a stage."""
    blocks, store = RecordStore(folder / "blocks"), RecordStore(folder / "int8")
    nothing = Artifact("reference", folder, {}, {}, 0.0)
    inputs = part_inputs(reference, images)
    work = QuantiseParts(config, nothing, blocks, store, borders(inputs))
    data = load_data(config.data, {"input_size": (1, 16, 16)})
    weights = list(map(inverse_variance, calibrate(reference, data.distillation_plain.first(64))))
    work.__dict__["_loaded"] = (reference, weights, data, inputs)
    jobs: list[list[PartJob]] = []
    for number, stage in enumerate(few.stages, start=1):
        jobs.append([])
        for spec in stage.choices:
            key = f"{number}-{record_id(spec)}"
            with seeded(0):
                blocks.put(key, {}, build_block(spec, stage.shape).state_dict())
            jobs[-1].append(PartJob(key, number, (key, spec)))
    return work, store, jobs


@pytest.fixture(scope="module")
def quantised(
    config: RunConfig,
    reference: StagedNetwork,
    few: SearchSpace,
    images: Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[QuantisedLowering, list[np.ndarray]]:
    """What a worker makes of untrained blocks, and their NSR."""
    folder = tmp_path_factory.mktemp("int8")
    work, store, jobs = parts_work(config, reference, few, images, folder)
    own = [PartJob(f"own{number}", number) for number in range(len(few.stages) + 2)]
    work([*own, *(job for stage in jobs for job in stage)])
    nsr = [np.array([store.record(job.key)["nsr"] for job in stage]) for stage in jobs]
    keys = [
        {record_id(spec): job.key for spec, job in zip(stage.choices, own_jobs, strict=True)}
        for stage, own_jobs in zip(few.stages, jobs, strict=True)
    ]
    return QuantisedLowering(store, [job.key for job in own], keys), nsr


def test_nsr_in_int8_of_the_references_own_stages_is_that_of_quantisation(
    reference: StagedNetwork, quantised: tuple[QuantisedLowering, list[np.ndarray]], images: Tensor
) -> None:
    lowering, nsr = quantised
    store = lowering._store
    own = [store.record(f"own{number}")["nsr"] for number in (1, 2, 3)]
    assert all(0 < ratio < 0.05 for ratio in own)
    assert min(each.min() for each in nsr) > max(own)  # of blocks that have learnt nothing
    assert store.record("own0")["nsr"] is None
    logits = OnnxNetwork(lowering.reference())(images)
    assert float((logits.argmax(1) == reference(images).argmax(1)).float().mean()) > 0.8


def test_front_is_of_networks_in_int8(
    few: SearchSpace,
    quantised: tuple[QuantisedLowering, list[np.ndarray]],
    tmp_path: Path,
) -> None:
    lowering, nsr = quantised
    device = OnnxRuntimeConnector("cpu", QUICK)
    baseline = device.calibrate()
    models: dict[Architecture, bytes] = {}

    def measured_ms(architecture: Architecture) -> float:
        models[architecture] = bytes(lowering.model(few.specs(architecture)))
        handle = device.prepare(Workload.from_onnx(models[architecture]))
        return device.measure(handle, device.settings, baseline).median_ms

    macs = KnownCost(tuple(np.array([1.0, 9.0]) for _ in few.stages))
    problem = SearchProblem(few, AccuracyModel.of_noise(nsr), {"macs": macs})
    search = search_on(tmp_path / "journal", problem, strategy="frontier", evaluations=8)
    assert len(drive(search, measured_ms)) == few.size
    measured = search.ledger.measured
    rows = list(measured)
    values = np.array([measured[row][:2] for row in rows])
    front = [rows[row] for row in nondominated(values[:, 0], values[:, 1:])]
    assert front
    for architecture in front:
        graph = onnx.load_model_from_string(models[architecture]).graph
        known = {tensor.name: tensor for tensor in graph.initializer}
        scales = [n for n in graph.node if n.op_type == "QuantizeLinear"]
        assert {node.input[0] for node in scales} >= {"input", "edge0", "edge1", "edge2", "edge3"}
        weights = {
            known[node.input[0]].data_type
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in known
        }
        assert onnx.TensorProto.INT8 in weights


def test_a_phone_measures_a_network_in_int8(
    few: SearchSpace,
    quantised: tuple[QuantisedLowering, list[np.ndarray]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = bytes(quantised[0].model(few.specs((0,) * len(few.stages))))
    phone = Phone(tmp_path / "phone").start()
    request.addfinalizer(phone.kill)
    runner = {"kind": "onnxruntime_perf_test", "binary": str(perf_test(tmp_path))}
    more = {"address": phone.address, "key": str(tmp_path / "adbkey"), "warmup_runs": 1}
    with closing(AdbConnector("phone", {**QUICK, **more, "runner": runner})) as device:
        handle = device.prepare(Workload.from_onnx(model))
        assert device.measure(handle, device.settings).median_ms > 0
    brought = tmp_path.glob("phone/**/device-farm/models/*.onnx")
    assert model in {file.read_bytes() for file in brought}


def test_a_block_that_cannot_be_quantised_is_left_out(
    config: RunConfig,
    reference: StagedNetwork,
    few: SearchSpace,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The larger one of each stage: the others have their NSR, and both libraries lack it."""
    made = quantised_part
    work, store, jobs = parts_work(config, reference, few, images, tmp_path)
    faulty = [work._part(stage[1])[0].SerializeToString() for stage in jobs]

    def refuses(part: onnx.ModelProto, *given: Any) -> onnx.ModelProto:
        if part.SerializeToString() in faulty:
            raise RuntimeError("no such operator\nin int8")
        return made(part, *given)

    monkeypatch.setattr(library_in_int8, "quantised_part", refuses)
    work([job for stage in jobs for job in stage])
    for good, bad in jobs:
        assert store.record(good.key)["nsr"] > 0
        why = store.records()[bad.key]["failed"]
        assert why == "it cannot be quantised: RuntimeError: no such operator in int8"

    said: list[str] = []
    own = [PartJob("own", 0)]
    store.put("own", {"part": 0, "nsr": None}, {})
    stages = [
        [
            {"key": job.key, "block": job.block[1].to_json(), "nsr": 0.1}
            for job in stage
            if job.block
        ]
        for stage in jobs
    ]
    library = Artifact("library", tmp_path, {"stages": stages, "shapes": [], "failed": []}, {}, 0.0)
    run = Mock(say=said.append)
    result = library_in_int8._result(run, library, jobs, own, store, 7)
    assert [[block["graph"] for block in stage] for stage in result["stages"]] == [
        [good.key] for good, _ in jobs
    ]
    assert [block["key"] for block in result["failed"]] == [bad.key for _, bad in jobs]
    assert sum("is left out" in line for line in said) == len(jobs)
    left = library_in_int8._within(library, replace(library, result=result)).result
    assert [[block["key"] for block in stage] for stage in left["stages"]] == [
        [good.key] for good, _ in jobs
    ]
    assert left["failed"] == result["failed"]

    store.put_failed("own", "it cannot be quantised: no", {"part": 0})
    with pytest.raises(DonnaError, match=r"The reference must be quantised .* its part 0"):
        library_in_int8._result(run, library, jobs, own, store, 7)


def test_a_full_disk_is_not_the_blocks_fault_but_noise_without_end_is(
    config: RunConfig,
    reference: StagedNetwork,
    few: SearchSpace,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, store, [[job, *_], *_] = parts_work(config, reference, few, images, tmp_path)

    def full(*_given: Any) -> onnx.ModelProto:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(library_in_int8, "quantised_part", full)
        with pytest.raises(OSError, match="No space left"):
            work([job])
    assert store.records() == {}
    with monkeypatch.context() as patch:
        patch.setattr(library_in_int8, "noise_to_signal", lambda *_given: torch.tensor(torch.nan))
        work([job])
    assert "ratio must be finite, but is nan" in store.records()[job.key]["failed"]
