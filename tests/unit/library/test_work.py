"""What a worker does with a pack, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from donna_ray.config import RunConfig
from donna_ray.distill import students
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.library import costs
from donna_ray.library import work as library_work
from donna_ray.library.costs import decided
from donna_ray.library.making import LibraryMaking
from donna_ray.library.watch import LibraryWatch
from donna_ray.library.work import DistillPack
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import SearchSpace, build_block
from donna_ray.storage.artifacts import Artifact
from donna_ray.storage.records import RecordStore
from tests.unit.distill.made import first_images


@pytest.fixture
def work(config: RunConfig, reference: StagedNetwork, tmp_path: Path) -> DistillPack:
    settings = config.library.model_copy(update={"epochs": 1, "precision": "fp32"})
    config = config.model_copy(update={"library": settings})
    work = DistillPack(config, None, RecordStore(tmp_path), RecordStore(tmp_path / "paused"))
    data = first_images(config, reference, 256, 64)  # 4 steps of a pass
    work._context = SimpleNamespace(  # in place of what a finished reference step left
        reference=reference, variance=calibrate(reference, data.calibration), data=data
    )
    return work


def jobs_of(space: SearchSpace, count: int) -> list[BlockJob]:
    choices = space.stages[1].choices
    return [BlockJob(f"key{number}", 1, choices[number]) for number in range(count)]


def test_pack_that_does_not_fit_is_halved(
    work: DistillPack, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def limited(
        reference: Any, variance: Any, jobs: list[BlockJob], *rest: Any, **more: Any
    ) -> Any:
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("a GPU of two blocks")
        return distill_pack(reference, variance, jobs, *rest, **more)

    monkeypatch.setattr(library_work, "distill_pack", limited)
    facts = work(jobs_of(space, 5))
    assert sizes == [5, 2, 3, 1, 2]
    records = RecordStore(tmp_path).records()
    assert sorted(records) == [f"key{number}" for number in range(5)]
    assert [nsr for _, nsr in facts["blocks"]] == [records[f"key{n}"]["nsr"] for n in range(5)]


def test_block_that_fits_no_memory_has_a_record_with_the_reason(
    work: DistillPack, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_one_fits(
        reference: Any, variance: Any, jobs: list[BlockJob], *rest: Any, **more: Any
    ) -> Any:
        if "key1" in [job.key for job in jobs]:
            raise torch.OutOfMemoryError("full")
        return distill_pack(reference, variance, jobs, *rest, **more)

    monkeypatch.setattr(library_work, "distill_pack", small_one_fits)
    facts = work(jobs_of(space, 2))
    records = RecordStore(tmp_path).records()
    assert records["key1"]["failed"] == "full"
    assert "failed" not in records["key0"]
    assert [1, None] in facts["blocks"]
    assert len(facts["blocks"]) == 2


@pytest.mark.parametrize("fits_alone", [False, True])
def test_block_that_raises_is_tried_once_more_alone(
    fits_alone: bool,
    work: DistillPack,
    space: SearchSpace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For cuDNN says so where it lacks memory; then it has a record with the reason."""
    packs: list[tuple[list[str], float]] = []

    def noted(reference: Any, variance: Any, jobs: list[BlockJob], *rest: Any, **more: Any) -> Any:
        packs.append(([job.key for job in jobs], more["learning_rate_factor"]))
        with pytest.MonkeyPatch.context() as patch:
            made = students._new_block

            def new_block(job: BlockJob, *given: Any) -> nn.Module:
                block = made(job, *given)
                if job.key == "key1" and (len(jobs) > 1 or not fits_alone):
                    patch.setattr(block, "forward", Mock(side_effect=RuntimeError("no engine")))
                return block

            patch.setattr(students, "_new_block", new_block)
            return distill_pack(reference, variance, jobs, *rest, **more)

    monkeypatch.setattr(library_work, "distill_pack", noted)
    facts = work(jobs_of(space, 3))
    assert packs == [(["key0", "key1", "key2"], 1.0), (["key1"], 1.0)]
    records = RecordStore(tmp_path).records()
    failed = {} if fits_alone else {"key1": "it raised RuntimeError: no engine"}
    assert {key: each["failed"] for key, each in records.items() if "failed" in each} == failed
    assert sorted(records) == ["key0", "key1", "key2"]
    assert len(facts["blocks"]) == 3


def test_block_that_raises_is_not_measured_for_the_packs(
    config: RunConfig, reference: StagedNetwork, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.library.model_copy(update={"precision": "fp32", "batch_size": 2})
    samples = [(job, number) for number, job in enumerate(jobs_of(space, 3))]

    def build(spec: Any, shape: Any) -> nn.Module:
        block = build_block(spec, shape)
        if spec == samples[1][0].spec:
            monkeypatch.setattr(block, "forward", Mock(side_effect=RuntimeError("no engine")))
        return block

    monkeypatch.setattr(costs, "build_block", build)
    settled = config.model_copy(update={"library": settings})
    measured = costs._measured(reference, settled, samples)["blocks"]
    assert [macs for _stage, _family, macs, _seconds in measured] == [0, 2]


def test_paused_block_goes_on_from_its_record(
    work: DistillPack, space: SearchSpace, tmp_path: Path
) -> None:
    jobs = jobs_of(space, 2)
    store, paused = RecordStore(tmp_path), RecordStore(tmp_path / "paused")
    work(jobs)
    whole = store.records()
    store.remove(whole)
    work._share = 0.5
    work(jobs)
    entered = paused.records()
    assert sorted(entered) == ["key0", "key1"]
    assert store.records() == {}
    work._share, work._started = 1.0, frozenset(entered)
    work(jobs[:1])
    (again,) = store.records().values()
    assert again["nsr"] == whole["key0"]["nsr"]
    assert again["weights_sha256"] == whole["key0"]["weights_sha256"]
    assert again["raced"] == {name: entered["key0"][name] for name in ("share", "nsr")}
    assert again["cost"]["seconds"] > entered["key0"]["cost"]["seconds"]
    half, both, alone = (
        each["key0"]["cost"]["image_passes"] for each in (entered, whole, store.records())
    )
    assert alone == half + (2 * both - 2 * half)  # a pack of two first, then a pack of one
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("key0.*")}
    facts = work(jobs)  # a pack that a dead worker had begun
    assert len(facts["blocks"]) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("key0.*")} == written
    assert store.records()["key0"] == again


def test_killed_pack_goes_on_from_what_its_worker_kept(
    work: DistillPack, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, store = jobs_of(space, 2), RecordStore(tmp_path)
    work(jobs)
    whole = store.records()
    store.remove(whole)
    kept, started = work._keep_states, list[int]()

    class Killed(BaseException): ...

    def keep(states: Any) -> None:
        kept(states)
        if all(state.steps == 3 for state in states.values()):
            raise Killed

    def noted(*given: Any, **how: Any) -> Any:
        started.extend(state.steps for state in how["states"].values())
        return distill_pack(*given, **how)

    monkeypatch.setattr("donna_ray.training.loop._KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(work, "_keep_states", keep)
    with pytest.raises(Killed):
        work(jobs)
    assert store.records() == {}
    assert sorted(work._unfinished.records()) == ["key0", "key1"]
    monkeypatch.setattr(work, "_keep_states", kept)
    monkeypatch.setattr(library_work, "distill_pack", noted)
    work(jobs)
    assert started == [3, 3]
    again = store.records()
    assert all(again[key]["weights_sha256"] == whole[key]["weights_sha256"] for key in whole)
    assert all(again[key]["nsr"] == whole[key]["nsr"] for key in whole)
    assert work._unfinished.records() == {}


def test_altered_block_alone_is_trained_again_to_the_same_weights(
    work: DistillPack, space: SearchSpace, config: RunConfig, tmp_path: Path
) -> None:
    jobs, store = jobs_of(space, 2), RecordStore(tmp_path)
    work(jobs)
    whole = store.records()
    files = [tmp_path / f"{job.key}.safetensors" for job in jobs]
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    written = files[0].stat().st_mtime_ns
    nothing: Any = None
    costs = [[{"params": 1, "macs": 1}] * 2]
    assert LibraryMaking(nothing, config, nothing, store, [jobs], costs).missing() == jobs[1:]
    work(jobs)
    assert files[0].stat().st_mtime_ns == written
    again = store.records()
    assert again["key1"]["weights_sha256"] == whole["key1"]["weights_sha256"]
    assert again["key1"]["nsr"] == whole["key1"]["nsr"]


def test_watch_counts_by_stage_and_writes_events(tmp_path: Path) -> None:
    now = iter([0.0, 1800.0, 3600.0])
    watch = LibraryWatch([(4, 1), (4, 0)], tmp_path, lambda: next(now))
    facts = {"blocks": [[0, 0.5], [1, 0.25], [1, None]], "images": 100, "reference_share": 0.2}
    first = "6 blocks/h; by stage 2/4 (1:00:00 left), 2/4 (0:30:00 left); 1 failed"
    assert watch(facts) == first
    more = {"blocks": [[0, 0.5], [0, 0.4]], "images": 10, "reference_share": None}
    assert watch(more) == "5 blocks/h; by stage 4/4, 2/4 (1:00:00 left); 1 failed"
    watch.close()
    (events,) = tmp_path.glob("events.*")
    content = events.read_bytes()
    for name in (b"nsr/stage0", b"blocks_per_hour", b"images_per_second", b"reference_share"):
        assert name in content


@pytest.mark.parametrize(("steps", "epochs"), [(None, 3), (1, 1), (14, 1), (15, 2), (500, 36)])
def test_steps_are_as_many_whole_passes(steps: int | None, epochs: int, config: RunConfig) -> None:
    """Of 898 images in batches of 64: 14 steps each."""
    settings = {"epochs": 3, "steps": steps, "batch_size": 64, "precision": "fp32"}
    library = config.library.model_copy(update=settings)
    run: Any = SimpleNamespace(config=config.model_copy(update={"library": library}))
    reference = Artifact("reference", Path(), {"images": {"distillation": 898}}, {}, 0.0)
    assert decided(run, reference).library.recipe_of("any").epochs == epochs
