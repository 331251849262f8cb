"""What a finished run says agrees with what is found in the files that it names."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml

from donna_ray.complexity import complexity
from donna_ray.config import RunConfig
from donna_ray.data import load_data, load_test
from donna_ray.export.choice import choose
from donna_ray.finetune.assemble import untrained
from donna_ray.reference.build import build_reference
from donna_ray.report.results import Results
from donna_ray.report.scenario import FrontPoint
from donna_ray.space import BlockSpec, build_space
from tests.command_line import donna_here
from tests.integration.conftest import results_of, words_of_demo


def test_results_follow_the_schema(finished: Path) -> None:
    results = Results.model_validate(results_of(finished))
    assert [len(stage.blocks) for stage in results.library.stages] == [4, 4, 4]
    assert set(results.cost) == {"reference", "library", "predictor", "search", "finetune"}
    assert (
        results.scenarios[0].search.candidates
        == results.scenarios[0].search.measured_architectures
        == 20
    )
    assert results.scenarios[0].search.strategy == "frontier"
    assert results.scenarios[0].search.yardstick is not None
    assert (results.scenarios[0].search.yardstick.hypervolume_share or 0) > 0
    assert all(0 <= point.predicted_accuracy <= 1.2 for point in results.scenarios[0].front)
    assert not results.scenarios[0].device.simulated


def test_front_has_no_dominated_point(finished: Path) -> None:
    results = Results.model_validate(results_of(finished))
    front = [
        (point.latency.median_ms, point.predicted_accuracy) for point in results.scenarios[0].front
    ]
    assert front == sorted(front)
    assert all(slower[1] > faster[1] for faster, slower in pairwise(front))
    (file,) = (finished / "search" / "default").glob("*/candidates.json")
    raw = {
        each["id"]: each["predicted_accuracy"] for each in json.loads(file.read_text())["measured"]
    }
    on_front = {point.id: point for point in results.scenarios[0].front}
    again = results.scenarios[0].search.verified.networks
    assert {each.id for each in again} >= set(on_front)
    for each in again:
        assert (each.id in on_front) == each.on_front
        assert each.on_front or any(
            point.latency.median_ms <= each.latency.median_ms and raw[point.id] >= raw[each.id]
            for point in on_front.values()
        )


def test_finetuned_files_are_what_results_say(finished: Path) -> None:
    results = Results.model_validate(results_of(finished))
    config = RunConfig.model_validate(yaml.safe_load((finished / "config.yaml").read_text()))
    reference, preprocessing = build_reference(config, load_weights=False)
    specs = {
        str(spec): spec for spec in build_space(config.space, reference.shapes).stages[0].choices
    }
    data, test = load_data(config.data, preprocessing), load_test(config.data, preprocessing)
    images, labels = map(
        torch.cat, zip(*(next(each.batches(1000)) for each in (data.validation, test)), strict=True)
    )
    held_out = slice(len(data.validation), None)
    assert (results.reference.test_images, results.reference.test_from) == (
        len(test),
        "data.test_fraction 0.5",
    )
    finetuned = [point for point in results.scenarios[0].front if point.accuracy is not None]
    assert len(finetuned) == min(3, len(results.scenarios[0].front))
    for point in finetuned:
        assert point.weights is not None
        assert point.onnx is not None
        network = untrained(reference, [specs[str(block)] for block in point.blocks])
        network.load_state_dict(safetensors.torch.load_file(finished / point.weights))
        network.requires_grad_(False).eval()
        logits = network(images).numpy()
        session = onnxruntime.InferenceSession(finished / point.onnx)
        outputs = [session.run(None, {"input": image[None].numpy()})[0] for image in images]
        np.testing.assert_allclose(np.concatenate(outputs), logits, atol=1e-4)
        right = (torch.from_numpy(logits).argmax(1) == labels).float()
        assert right[: held_out.start].mean().item() == pytest.approx(point.accuracy, abs=3e-3)
        assert right[held_out].mean().item() == pytest.approx(point.test_accuracy, abs=3e-3)
        assert point.test_low < point.test_accuracy < point.test_high
        cost = complexity(network, network.input_shape)
        assert (point.params, point.macs) == (cost["params"], cost["macs"])


def test_every_block_of_the_library_loads(finished: Path) -> None:
    results = Results.model_validate(results_of(finished))
    for stage in results.library.stages:
        for block in stage.blocks:
            assert 0 < block.nsr < 10
            weights = safetensors.torch.load_file(
                finished / "library" / "blocks" / f"{block.key}.safetensors"
            )
            learned = sum(value.numel() for name, value in weights.items() if not _is_buffer(name))
            assert learned == block.params


def test_report_is_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    results = Results.model_validate(results_of(finished))
    assert all(point.id in page for point in results.scenarios[0].front)
    assert '<script src="http' not in page
    assert "<link" not in page
    assert "This run is not finished" not in page


def test_again_reuses_every_step(finished: Path) -> None:
    before = results_of(finished)
    completed = donna_here(*words_of_demo(finished))
    assert completed.returncode == 0, completed.stderr
    for step in ("reference", "library", "predictor", "search/default", "finetune"):
        assert f"{step:<10} reused" in completed.stderr
    after = results_of(finished)
    assert all(cost["reused"] for cost in after["cost"].values())
    assert {**after, "cost": None, "made": None} == {**before, "cost": None, "made": None}


@pytest.mark.soak
def test_changed_setting_renews_only_what_depends_on_it(
    one_ray: None, copy_of_finished: Path
) -> None:
    sets = ["--set=finetune.epochs=2", "--set=cluster.workers=1"]
    completed = donna_here(*words_of_demo(copy_of_finished, *sets))
    assert completed.returncode == 0, completed.stderr
    for step in ("reference", "library", "predictor", "search/default"):
        assert f"{step:<10} reused" in completed.stderr
    assert f"{'finetune':<10} done" in completed.stderr


@pytest.mark.soak  # its parts in CI: test_work.py, test_damage.py and test_search_limits.py
def test_altered_block_is_trained_again_to_the_same_result(
    one_ray: None, copy_of_finished: Path
) -> None:
    """And a limit that nothing keeps, given with it, names the nearest that something does."""
    before = Results.model_validate(results_of(copy_of_finished))
    block = before.library.stages[1].blocks[2]
    weights = copy_of_finished / "library" / "blocks" / f"{block.key}.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    limit = ["--set=search.latency_limit=0.0001ms", "--set=search.evaluations=5"]
    completed = donna_here(*words_of_demo(copy_of_finished, *limit))
    assert "11 of 12 blocks are there already" in completed.stderr
    assert "predictor  reused" in completed.stderr
    (artifact,) = copy_of_finished.glob("library/*/artifact.json")
    again = json.loads(artifact.read_text())["result"]["stages"][1][2]
    assert again["key"] == block.key
    assert again["nsr"] == pytest.approx(block.nsr, rel=1e-3)

    assert completed.returncode == 1
    assert "search.latency_limit must be feasible" in completed.stderr
    assert "Raise the limit" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_step_alone_names_the_step_that_is_missing(copy_of_finished: Path) -> None:
    config = str(copy_of_finished)
    completed = donna_here("search", "build", config, "--set=seed=5")
    assert completed.returncode == 2
    assert "donna reference build" in completed.stderr
    assert "Traceback" not in completed.stderr
    completed = donna_here("report", "build", config)
    assert completed.returncode == 0, completed.stderr


def measured_of(front: list[FrontPoint]) -> list[dict[str, Any]]:
    """All but what is calibrated to the networks that are finetuned."""
    calibrated = {"predicted_accuracy", "predicted_low", "predicted_high"}
    return [point.model_dump(exclude=calibrated) for point in front]


def _is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_words_name_blocks() -> None:
    spec = BlockSpec.of("inverted_residual", {"kernel": 3, "squeeze_excite": True})
    assert str(spec) == "inverted_residual(kernel=3, squeeze_excite=yes)"


@pytest.mark.soak
def test_network_that_is_asked_for_is_finetuned_and_kept(
    one_ray: None, copy_of_finished: Path
) -> None:
    """One that no search measured, and one that it did and that is not on the front."""
    run = str(copy_of_finished)
    before = Results.model_validate(results_of(copy_of_finished))
    (file,) = (copy_of_finished / "search" / "default").glob("*/candidates.json")
    measured = {tuple(each["architecture"]) for each in json.loads(file.read_text())["measured"]}
    other = next(each for each in product(range(4), repeat=3) if each not in measured)
    beaten = next(
        each["id"]
        for each in json.loads(file.read_text())["measured"]
        if each["id"] not in {point.id for point in before.scenarios[0].front}
    )
    numbers = "-".join(map(str, other))

    refused = donna_here("export", run, numbers, "--to", f"{run}-out")
    assert f"`donna finetune {run} {numbers}`" in refused.stderr
    refused = donna_here("finetune", run, "zzzz")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("donna: A network must be named by its id")

    completed = donna_here("finetune", run, numbers, beaten[:15])
    assert completed.returncode == 0, completed.stderr
    there = sum(point.accuracy is not None for point in before.scenarios[0].front)
    assert f" of {there + 3} networks are finetuned already" in completed.stderr
    after = Results.model_validate(results_of(copy_of_finished))
    (scenario,) = after.scenarios
    assert measured_of(scenario.front) == measured_of(before.scenarios[0].front)
    calibrated = after.predictor.calibration
    assert calibrated is not None
    assert len(calibrated.networks) == there + 2
    asked = {tuple(each.architecture): each for each in scenario.asked}
    assert len(asked) == 2
    assert asked.keys() > {other}
    assert beaten in {each.id for each in scenario.asked}
    for point in scenario.asked:
        assert point.roles == ["asked for"]
        assert point.latency.median_ms > 0
        assert f"asked for: {point.id}, {point.test_accuracy:.2%} [" in completed.stderr
        assert (copy_of_finished / str(point.onnx)).is_file()

    again = donna_here(*words_of_demo(copy_of_finished))  # whose configuration names none
    assert again.returncode == 0, again.stderr
    assert f"{'finetune':<10} reused" in again.stderr
    kept = Results.model_validate(results_of(copy_of_finished))
    assert kept.scenarios == after.scenarios
    card = choose(copy_of_finished, numbers)
    assert card[0] == asked[other].id
    assert card[2][0]["median_ms"] == asked[other].latency.median_ms


def test_suggestions_are_networks_that_are_not_finetuned(copy_of_finished: Path) -> None:
    predictor = Results.model_validate(results_of(copy_of_finished)).predictor
    suggest = ("predictor", "suggest")
    completed = donna_here(*suggest, str(copy_of_finished), "--count=2", "--json")
    assert completed.returncode == 0, completed.stderr
    suggested = json.loads(completed.stdout)
    assert suggested["samples"] == predictor.samples == 6
    first, second = suggested["architectures"]
    assert len(first["architecture"]) == 3
    assert 0 < first["interval_fall"] < second["interval_fall"] < 1
    ids = {first["id"], second["id"], *(sample.id for sample in predictor.architectures)}
    assert len(ids) == 8
    assert donna_here(*suggest, "/no/run").returncode == 2


def test_finished_run_is_told_as_such(copy_of_finished: Path) -> None:
    """By status, by a dry run, and compared with itself."""
    run = str(copy_of_finished)
    status = json.loads(donna_here("status", run, "--json").stdout)
    assert (status["state"], status["process"]) == ("finished", None)
    cost = results_of(copy_of_finished)["cost"].values()
    assert status["cost"]["image_passes"] == sum(each["image_passes"] for each in cost)
    plan = json.loads(donna_here("run", run, "--dry-run", "--json").stdout)
    states = {row["step"]: row["state"] for row in plan["steps"]}
    assert states.pop("report") == "to do"
    assert set(states.values()) == {"finished"}
    both = json.loads(donna_here("compare", run, run, "--json").stdout)
    assert both["settings"] == []
    assert both["scenarios"][0]["hypervolume"] == [1, 1]
