"""What the workers do for the reference, in parts; weights with the classes in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from donna_ray.config import RunConfig, load_config, shipped_config
from donna_ray.data import Split
from donna_ray.errors import DonnaError
from donna_ray.reference import step, work
from donna_ray.reference.load import load_reference
from donna_ray.reference.step import reference_step
from donna_ray.reference.timm_models import create_timm_model
from donna_ray.reference.work import calibrate
from donna_ray.run.run import Run
from donna_ray.storage.artifacts import Artifact
from donna_ray.workers.spread import Unit
from tests.unit.reference.conftest import spread_here


def demo(*sets: str) -> RunConfig:
    return load_config(shipped_config("demo"), sets)


TRAINED = demo("reference.training={epochs: 6, batch_size: 64}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with Run(TRAINED, tmp_path_factory.mktemp("made") / "run") as run:
        return reference_step(run)


def test_parts_of_a_split_are_disjoint_and_mixed() -> None:
    count = 1000
    split = Split(TensorDataset(torch.arange(count), torch.arange(count)))
    parts = split.portions(90)
    rows = [torch.cat([rows for rows, _ in part.batches(64)]).tolist() for part in parts]
    assert [len(part) for part in parts] == [len(each) for each in rows]
    assert sorted(row for each in rows for row in each) == list(range(count))
    assert {len(each) for each in rows} <= {90, 91}
    assert all(each == sorted(each) and max(each) > 900 > 100 > min(each) for each in rows)
    some = [part.rows for part in split.portions(90, most=200)]
    chosen = np.concatenate([each for each in some if each is not None])
    assert len(set(chosen.tolist())) == 200
    assert chosen.max() > 900
    assert split.portions(600) == [split]
    assert len(split.portions(600)[0]) == count


def test_parts_add_up_to_one_pass(
    made: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units: list[Unit] = []

    def spread(run: Run, name: str, unit: str, some: Any, *rest: Any, **how: Any) -> Any:
        units.extend(some)
        return spread_here(run, name, unit, some, *rest, **how)

    monkeypatch.setattr(work, "_PART", 100)
    monkeypatch.setattr(step, "spread", spread)
    with Run(TRAINED, tmp_path / "run") as run:
        again = reference_step(run)
    images = made.result["images"]
    kinds = [unit.payload[0] for unit in units if unit.payload]
    assert kinds.count("variance") == images["train"] // 100
    assert kinds.count("accuracy") == images["validation"] // 100
    passes = made.result["cost"]["image_passes"]
    assert again.result["cost"]["image_passes"] == passes == sum(unit.weight for unit in units)
    assert again.result["accuracy"] == made.result["accuracy"]
    assert again.result["weights_sha256"] == made.result["weights_sha256"]
    for one, other in zip(
        *(load_reference(TRAINED, each)[1] for each in (made, again)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_variance_of_many_images_is_of_a_sample(
    made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_VARIANCE_IMAGES", 600)
    reference, variance = load_reference(TRAINED, made)
    draft = work.Draft(TRAINED, "key", 10, made.result["preprocessing"], {}, Any)
    (sample,) = draft.images(draft.data(), "variance")
    assert len(sample) == 600
    for one, other in zip(calibrate(reference, sample), variance, strict=True):
        assert not torch.equal(one, other)
        assert (one - other).abs().max() < 0.3 * other.max()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda images, _: images[7, 0, 3].fill_(torch.nan), "of stage 0 has NaN or infinity"),
        (lambda _, stage: stage.register_forward_hook(constant), "stage 1 gives the same for all"),
    ],
)
def test_stage_without_a_signal_is_named(made: Artifact, spoil: Any, words: str) -> None:
    """Not every NSR is 0 then."""
    reference, _ = load_reference(TRAINED, made)
    images = torch.randn(64, *reference.input_shape)
    spoil(images, reference.stages[1])
    with pytest.raises(DonnaError, match=words):
        calibrate(reference, Split(TensorDataset(images, torch.arange(64))))


def constant(_stage: nn.Module, _given: Any, output: Tensor) -> Tensor:
    return torch.full_like(output, 0.7)


def test_weights_that_know_the_classes_in_another_order_stop_the_run(
    made: Artifact, tmp_path: Path
) -> None:
    weights = load_reference(TRAINED, made)[0].state_dict()
    model = create_timm_model(TRAINED.reference, classes=10, channels=1, load_weights=False)
    own = dict(zip(model.state_dict(), weights.values(), strict=True))  # under timm's names
    *_, weight, bias = own
    for given, order in (("right", list(range(10))), ("other", [1, 2, 3, 4, 5, 0, 6, 7, 8, 9])):
        file = tmp_path / f"{given}.pt"
        torch.save({**own, weight: own[weight][order], bias: own[bias][order]}, file)
        config = demo(f"reference.weights={file}", "reference.training=null")
        with Run(config, tmp_path / given) as run:
            if given == "right":
                assert reference_step(run).result["accuracy"] == made.result["accuracy"]
            else:
                with pytest.raises(DonnaError, match="classes in the order of the data's"):
                    reference_step(run)
                assert not list((run.root / "reference").glob("*/artifact.json"))
