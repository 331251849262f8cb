"""Distillation, finetuning and a whole run on a real GPU, against the same on the CPU."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import onnxruntime
import pytest
import torch
from torch.utils.data import TensorDataset

from donna_ray.config import ClusterConfig, LibraryConfig, ReferenceTraining, RunConfig
from donna_ray.data import ImageData, Split
from donna_ray.data.pixels import Normalisation
from donna_ray.distill.features import FeatureCache
from donna_ray.distill.pack import DistilledBlock, distill_pack
from donna_ray.distill.precision import measured_precision, step_cost
from donna_ray.distill.students import BlockJob
from donna_ray.library import costs
from donna_ray.library import work as library_work
from donna_ray.library.work import DistillPack
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import SearchSpace, build_space
from donna_ray.storage.records import RecordStore
from donna_ray.training.loop import accuracy, cross_entropy
from donna_ray.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

HAS_BF16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this GPU has no bfloat16")

Distill = Callable[..., list[DistilledBlock]]
FP32 = LibraryConfig(epochs=2, batch_size=64, precision="fp32")


@pytest.fixture(scope="session")
def on_gpu(reference: StagedNetwork) -> StagedNetwork:
    return copy.deepcopy(reference).to("cuda")


@pytest.fixture(scope="session")
def space(config: RunConfig, reference: StagedNetwork) -> SearchSpace:
    return build_space(config.space, reference.shapes)


@pytest.fixture(scope="session")
def jobs(space: SearchSpace) -> list[BlockJob]:
    return [
        BlockJob(f"key{stage}-{choice}", stage, space.stages[stage].choices[choice])
        for stage in range(3)
        for choice in (0, 17, 31)
    ]


@pytest.fixture(scope="session")
def distill(reference: StagedNetwork, data: ImageData) -> Distill:
    variance = calibrate(reference, data.calibration)

    def distilled(
        teacher: StagedNetwork, jobs: list[BlockJob], config: LibraryConfig = FP32, **how: Any
    ) -> list[DistilledBlock]:
        return distill_pack(teacher, variance, jobs, data, config, 1, **how).blocks

    return distilled


def nsrs(blocks: list[DistilledBlock]) -> list[float]:
    assert [block.failure for block in blocks] == [None] * len(blocks)
    return [block.nsr or 0.0 for block in blocks]


def test_batches_on_the_gpu_are_those_of_the_cpu() -> None:
    """Though work of other kinds is under way there, and the caller keeps none of them."""
    images = torch.randint(0, 256, (80, 3, 32, 32), dtype=torch.uint8)
    pixels = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    split = Split(TensorDataset(images, torch.arange(80)), normalised=pixels)
    expected = list(split.batches(16))
    for number, (found, labels) in enumerate(split.batches(16, device=torch.device("cuda"))):
        torch.randn(2048, 2048, device="cuda") @ torch.randn(2048, 2048, device="cuda")
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected[number][0])
        assert labels.tolist() == expected[number][1].tolist()


def test_a_pack_has_the_nsr_of_the_cpu(
    distill: Distill, reference: StagedNetwork, on_gpu: StagedNetwork, jobs: list[BlockJob]
) -> None:
    found, expected = nsrs(distill(on_gpu, jobs)), nsrs(distill(reference, jobs))
    assert found == pytest.approx(expected, rel=0.05)


def test_a_block_does_not_depend_on_its_pack(
    distill: Distill, on_gpu: StagedNetwork, jobs: list[BlockJob]
) -> None:
    alone = [nsrs(distill(on_gpu, [job]))[0] for job in jobs[::4]]
    assert nsrs(distill(on_gpu, jobs))[::4] == pytest.approx(alone, rel=0.02)


def test_bf16_has_about_the_nsr_of_fp32(
    distill: Distill, on_gpu: StagedNetwork, jobs: list[BlockJob]
) -> None:
    bf16 = FP32.model_copy(update={"precision": "bf16"})
    found = nsrs(distill(on_gpu, jobs, bf16))
    assert found == pytest.approx(nsrs(distill(on_gpu, jobs)), rel=0.2)


def test_kept_features_give_the_same_blocks(
    distill: Distill, on_gpu: StagedNetwork, data: ImageData, jobs: list[BlockJob]
) -> None:
    cache = FeatureCache.build(on_gpu, data, uuid.uuid4().hex)
    found = nsrs(distill(on_gpu, jobs, cache=cache))
    assert found == pytest.approx(nsrs(distill(on_gpu, jobs)), rel=0.05)


def test_a_stopped_block_goes_on(
    distill: Distill, on_gpu: StagedNetwork, jobs: list[BlockJob]
) -> None:
    stopped = distill(on_gpu, jobs, share=0.5)
    states = {block.job.key: block.state for block in stopped}
    assert all(value.device.type == "cpu" for value in states[jobs[0].key].tensors.values())
    found = nsrs(distill(on_gpu, jobs, states=states))
    assert found == pytest.approx(nsrs(distill(on_gpu, jobs)), rel=0.02)


def test_precision_and_costs_are_measured(
    config: RunConfig, on_gpu: StagedNetwork, jobs: list[BlockJob]
) -> None:
    assert measured_precision(on_gpu, 64) in ("fp32", "bf16" if HAS_BF16 else "fp16")
    features = torch.randn(64, *on_gpu.shapes[0].input, device="cuda")
    seconds, peak = step_cost(
        copy.deepcopy(on_gpu.stages[0]).requires_grad_(True).train(), features, "fp32"
    )
    assert 0 < seconds < 60
    assert peak >= features.nbytes
    cluster = ClusterConfig(gpus_per_worker=1)
    library = config.library.model_copy(update={"pack_size": None, "precision": "fp32"})
    known = config.model_copy(update={"cluster": cluster, "library": library})
    found = costs._measured(on_gpu, known, [(job, 1000 + job.stage) for job in jobs])
    assert 1 <= found["pack_size"] <= 64
    assert all(seconds > 0 for *_, seconds in found["blocks"])


def test_a_pack_out_of_memory_is_halved(
    config: RunConfig,
    data: ImageData,
    on_gpu: StagedNetwork,
    jobs: list[BlockJob],
    distill: Distill,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = config.model_copy(
        update={"library": FP32, "cluster": ClusterConfig(gpus_per_worker=1), "seed": 1}
    )
    work = DistillPack(known, None, RecordStore(tmp_path), RecordStore(tmp_path / "paused"))
    work._context = SimpleNamespace(
        reference=on_gpu, variance=calibrate(on_gpu, data.calibration), data=data
    )
    monkeypatch.setattr(library_work, "distill_pack", of_little_memory(limit=4))
    work(jobs)
    records = RecordStore(tmp_path).records()
    found = [records[job.key]["nsr"] for job in jobs]
    assert found == pytest.approx(nsrs(distill(on_gpu, jobs)), rel=0.02)


def of_little_memory(limit: int) -> Callable[..., Any]:
    """`distill_pack`, beside which another holds the GPU's memory if the pack is large."""

    def limited(reference: Any, variance: Any, jobs: list[BlockJob], *rest: Any, **how: Any) -> Any:
        held = []
        if len(jobs) > limit:
            free, _ = torch.cuda.mem_get_info()
            held.append(torch.empty(2 * free, dtype=torch.uint8, device="cuda"))
        return distill_pack(reference, variance, jobs, *rest, **how)

    return limited


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16), "fp16"])
def test_a_network_learns(
    precision: Literal["fp32", "bf16", "fp16"], data: ImageData, reference: StagedNetwork
) -> None:
    network = copy.deepcopy(reference).requires_grad_(True).to("cuda")
    recipe = ReferenceTraining(epochs=8, learning_rate=0.003, precision=precision)
    trainer = Trainer(network, data, recipe, 0, cross_entropy)
    while not trainer.finished():
        trainer.train_epoch()
    assert accuracy(trainer.result(), data.validation) > 0.9


RUN = """
data: {source: digits, validation_fraction: 0.5}
reference:
  model: donna_digits
  weights: train
  training: {epochs: 12, batch_size: 64, learning_rate: 0.005}
space:
  blocks:
    - family: inverted_residual
      options:
        kernel: [3]
        expansion: [1, 4]
        depth: [1, 2]
        activation: [relu]
        squeeze_excite: [false]
library: {epochs: 3, batch_size: 64, learning_rate: 0.005}
predictor: {samples: 6, epochs: 1, batch_size: 64, learning_rate: 0.002}
search: {evaluations: 12, batch_size: 4}
finetune: {networks: 2, epochs: 3, batch_size: 64, learning_rate: 0.003}
device: {connector: cuda, settings: {cuda_graph: true}}
cluster: {workers: WORKERS, cpus_per_worker: 2, gpus_per_worker: GPUS}
"""


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="its timer needs `pip install onnxruntime-gpu`",
)
@pytest.mark.parametrize(("workers", "gpus"), [(1, 1), (2, 0.5)])
def test_a_run_from_reference_to_report(workers: int, gpus: float, tmp_path: Path) -> None:
    """Workers lend the GPU to its timer, and two of them share it."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("WORKERS", str(workers)).replace("GPUS", str(gpus)))
    command = [sys.executable, "-m", "donna_ray", "run", str(path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    [scenario] = results["scenarios"]
    assert torch.cuda.get_device_name() in scenario["device"]["model"]
    assert scenario["front"]
    assert results["reference"]["accuracy"] > 0.5
