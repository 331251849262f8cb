"""The predictor's step over networks that are finetuned already: rounds, and what they leave."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from donna_ray.config import RunConfig
from donna_ray.errors import DonnaError
from donna_ray.finetune.assemble import block_keys, choice_table, library_space
from donna_ray.finetune.step import jobs_of, network_store
from donna_ray.predictor import quantised
from donna_ray.predictor.design import design
from donna_ray.predictor.step import predictor_step
from donna_ray.run.ownership import MARKER
from donna_ray.run.run import Run
from donna_ray.space import BlockSpec, SearchSpace, encode, record_id
from donna_ray.storage.artifacts import Artifact

BUDGET = 24


@pytest.fixture
def library(space: SearchSpace, tmp_path: Path) -> Artifact:
    """Every block of the space, with some NSR."""
    generator = np.random.default_rng(0)
    stages = [
        [
            {
                "key": f"{number}-{index}",
                "block": spec.to_json(),
                "nsr": float(0.2 * np.exp(generator.normal(0, 0.6))),
            }
            for index, spec in enumerate(stage.choices)
        ]
        for number, stage in enumerate(space.stages)
    ]
    shapes = [[stage.shape.input, stage.shape.output] for stage in space.stages]
    return Artifact("library", tmp_path, {"shapes": shapes, "stages": stages}, {}, 0.0)


def finetuned_run(
    config: RunConfig, folder: Path, library: Artifact, slope: float = 0.1, **settings: Any
) -> Run:
    """A run in whose folder the networks of the whole budget are finetuned.

    Their accuracy falls with the sum of NSR by the slope. No network trains where a record is
    missing: the reference is none.
    """
    predictor = config.predictor.model_copy(
        update={"samples": BUDGET, "precision": "fp32", **settings}
    )
    (folder / MARKER).touch()
    run = Run(config.model_copy(update={"predictor": predictor}), folder)
    space, table = spaces_of(library)
    random = predictor.sampling == "random"
    architectures = (
        space.sample(BUDGET, config.seed) if random else design(space, table, BUDGET, config.seed)
    )
    jobs = jobs_of(run, reference_of(folder), block_keys(library), space, architectures, predictor)
    noise = np.random.default_rng(1).normal(0, 0.006, BUDGET)
    for job, nsr, error in zip(jobs, encode(architectures, table), noise, strict=True):
        record = {
            "accuracy": 0.9 - slope * float(nsr.sum()) + error,
            "zero_shot_accuracy": 0.5,
            "params": 1,
            "macs": 1,
            "blocks": [spec.to_json() for spec in job.specs],
            "cost": {"image_passes": 10},
        }
        network_store(run).put(job.key, record, {"weight": torch.zeros(1)})
    return run


def spaces_of(library: Artifact) -> tuple[SearchSpace, list[Any]]:
    return library_space(library), choice_table(library, "nsr")


def reference_of(folder: Path) -> Artifact:
    facts = {"images": {"validation": 100}, "classes": 10, "stages": []}
    return Artifact("reference", folder, facts, {}, 0.0)


def test_sample_that_diverged_is_left_out(
    config: RunConfig, library: Artifact, tmp_path: Path
) -> None:
    with finetuned_run(config, tmp_path, library) as run:
        jobs = predictor_step(run, reference_of(tmp_path), library).result["samples"]
        lost = jobs[3]
    shutil.rmtree(tmp_path / "predictor")
    with finetuned_run(config, tmp_path, library) as run:
        network_store(run).put_failed(lost["key"], "its loss became nan", {})
        result = predictor_step(run, reference_of(tmp_path), library).result
    assert [each["id"] for each in result["samples"]] == [
        each["id"] for each in jobs if each["id"] != lost["id"]
    ]


@pytest.mark.parametrize(("tau_interval", "count"), [(None, BUDGET), (1.9, 16), (0.0001, BUDGET)])
def test_rounds_end_once_tau_is_known_well_enough(
    config: RunConfig, library: Artifact, tmp_path: Path, tau_interval: float | None, count: int
) -> None:
    with finetuned_run(config, tmp_path, library, tau_interval=tau_interval) as run:
        result = predictor_step(run, reference_of(tmp_path), library).result
        assert len(result["samples"]) == count
        assert result["cost"]["image_passes"] == 10 * count
        quality = result["quality"]
        assert quality["predictor"]["kendall_tau"]["value"] > 0.9
        assert quality["params"]["kendall_tau"]["value"] == 0
        assert set(quality) == {"predictor", "nsr_sum", "params", "macs", "zero_shot_accuracy"}
        sample = result["samples"][0]
        assert sample["predicted_low"] < sample["predicted"] < sample["predicted_high"]
        again = predictor_step(run, reference_of(tmp_path), library)
        assert again.reused


def test_rounds_go_on_while_tau_may_be_0(
    config: RunConfig, library: Artifact, tmp_path: Path
) -> None:
    with finetuned_run(config, tmp_path, library, slope=0, tau_interval=1.9) as run:
        result = predictor_step(run, reference_of(tmp_path), library).result
    assert result["quality"]["predictor"]["kendall_tau"]["low"] <= 0
    assert len(result["samples"]) == BUDGET


def test_random_sampling_takes_what_the_space_samples(
    config: RunConfig, library: Artifact, tmp_path: Path
) -> None:
    space, table = spaces_of(library)
    sampled = space.sample(BUDGET, config.seed)
    assert sampled != design(space, table, BUDGET, config.seed)
    with finetuned_run(config, tmp_path, library, sampling="random") as run:
        result = predictor_step(run, reference_of(tmp_path), library).result
    assert [each["id"] for each in result["samples"]] == [space.id_of(each) for each in sampled]


def test_predictor_of_a_smaller_space_is_kept(
    config: RunConfig, library: Artifact, tmp_path: Path
) -> None:
    smaller = [stage[:-2] for stage in library.result["stages"]]
    before = Artifact("library", tmp_path, library.result | {"stages": smaller}, {}, 0.0)
    with finetuned_run(config, tmp_path, before) as run:
        fitted = predictor_step(run, reference_of(tmp_path), before)
        kept = predictor_step(run, reference_of(tmp_path), library)
        assert kept.reused
        assert kept.result == fitted.result
        space, table = spaces_of(library)
        informed = {space.id_of(each) for each in design(space, table, BUDGET, config.seed)}
        assert informed != {sample["id"] for sample in kept.result["samples"]}


def test_blocks_of_samples_that_were_not_fitted_do_not_matter(
    config: RunConfig, library: Artifact, tmp_path: Path
) -> None:
    space, table = spaces_of(library)
    samples = design(space, table, BUDGET, config.seed)
    stage, choice = next(
        (stage, sample[stage])
        for sample in samples[16:]
        for stage in range(len(space.stages))
        if sample[stage] not in {each[stage] for each in samples[:16]}
    )
    stages = [[dict(block) for block in each] for each in library.result["stages"]]
    stages[stage][choice]["nsr"] *= 1.001
    other = Artifact("library", tmp_path, library.result | {"stages": stages}, {}, 0.0)
    with finetuned_run(config, tmp_path, library, tau_interval=1.9) as run:
        fitted = predictor_step(run, reference_of(tmp_path), library)
        kept = predictor_step(run, reference_of(tmp_path), other)
    assert len(fitted.result["samples"]) == 16
    assert kept.reused
    assert kept.result == fitted.result


def test_predictor_in_int8_is_of_the_same_samples_quantised(
    config: RunConfig, library: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In int8 the blocks of the last stage are three times as noisy."""
    with finetuned_run(config, tmp_path, library) as run:
        reference = reference_of(tmp_path)
        predictor = predictor_step(run, reference, library)
        stages = library.result["stages"]
        noisier = [*stages[:-1], [{**each, "nsr": 3 * each["nsr"]} for each in stages[-1]]]
        in_int8 = replace(library, result={**library.result, "stages": noisier})

        def networks(_run: Run, _reference: Artifact, _store: Any, trained: Any) -> Any:
            tables = [
                {record_id(BlockSpec.from_json(each["block"])): each["nsr"] for each in stage}
                for stage in noisier
            ]
            sums = [
                sum(table[record_id(spec)] for table, spec in zip(tables, specs, strict=True))
                for _, specs in trained
            ]
            return [{"accuracy": 0.9 - 0.1 * each, "cost": {"image_passes": 7}} for each in sums]

        monkeypatch.setattr(quantised, "quantised_networks", networks)
        made = quantised.quantised_predictor(run, reference, in_int8, predictor)
        again = quantised.quantised_predictor(run, reference, in_int8, predictor)
    assert again.reused
    assert again.result == made.result
    pairs = list(zip(made.result["samples"], predictor.result["samples"], strict=True))
    for own, other in pairs:
        assert (own["id"], own["key"]) == (other["id"], other["key"])
        assert own["nsr"] == [*other["nsr"][:-1], pytest.approx(3 * other["nsr"][-1])]
        assert own["accuracy"] == pytest.approx(0.9 - 0.1 * sum(own["nsr"]))
    assert made.result["quality"]["predictor"]["kendall_tau"]["value"] > 0.9
    assert made.result["cost"]["image_passes"] == 7 * len(pairs)


@pytest.mark.parametrize("failing", [3, BUDGET // 2 + 1])
def test_predictor_in_int8_is_of_the_samples_that_can_be_quantised(
    config: RunConfig,
    library: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    """If these are at least half."""

    def networks(*given: Any) -> Any:
        made = [
            {"accuracy": 0.9 - n / 100, "cost": {"image_passes": 7}} for n in range(len(given[-1]))
        ]
        return [{"failed": "it cannot be quantised: no"}] * failing + made[failing:]

    monkeypatch.setattr(quantised, "quantised_networks", networks)
    with finetuned_run(config, tmp_path, library) as run:
        reference = reference_of(tmp_path)
        predictor = predictor_step(run, reference, library)
        if 2 * failing > BUDGET:
            with pytest.raises(DonnaError, match="At least half of the networks of predictor"):
                quantised.quantised_predictor(run, reference, library, predictor)
            return
        result = quantised.quantised_predictor(run, reference, library, predictor).result
    ids = [each["id"] for each in predictor.result["samples"]]
    assert [each["id"] for each in result["samples"]] == ids[failing:]
    assert result["samples"][0]["accuracy"] == 0.9 - failing / 100
