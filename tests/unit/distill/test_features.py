"""Features that are kept give what computed ones give, for feature maps and for tokens."""

from __future__ import annotations

import copy
import uuid
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from donna_ray.config import DataConfig, LibraryConfig, RunConfig, SpaceConfig
from donna_ray.data import ImageData, load_data
from donna_ray.distill import features
from donna_ray.distill.features import ComputedFeatures, FeatureCache, check_features, kept_bytes
from donna_ray.distill.pack import distill_pack
from donna_ray.distill.students import BlockJob
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.reference.network import StagedNetwork
from donna_ray.reference.work import calibrate
from donna_ray.space import BlockSpec, SearchSpace, StageShape, build_block
from donna_ray.training.engine import Engine
from tests.unit.data.image_files import PREPROCESSING, encoded, write_split, write_tar
from tests.unit.distill.made import first_images

FP32 = LibraryConfig(epochs=4, batch_size=32, precision="fp32")
TOKENS = BlockSpec.of("transformer", {"depth": 1, "heads": 2, "mlp_ratio": 2, "mixer": "attention"})
ATTENTION = BlockJob(
    "attention",
    1,
    BlockSpec.of("transformer", {"depth": 1, "heads": 4, "mlp_ratio": 3, "mixer": "attention"}),
)


class Patches(nn.Module):
    """(N, 1, 16, 16) to (N, 16, 8) tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 8, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).flatten(2).transpose(1, 2)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens.mean(1))


@pytest.fixture(scope="module")
def few_images(config: RunConfig, reference: StagedNetwork) -> ImageData:
    return first_images(config, reference, 100, 70)


@pytest.fixture(scope="module")
def transformer() -> StagedNetwork:
    torch.manual_seed(0)
    shape = StageShape((16, 8), (16, 8))
    stages = [build_block(TOKENS, shape) for _ in range(2)]
    return StagedNetwork(Patches(), stages, Classifier(), (1, 16, 16)).requires_grad_(False)


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "disk" else None


def build(network: StagedNetwork, data: ImageData, folder: Path | None = None) -> FeatureCache:
    """Of this test's own."""
    return FeatureCache.build(network, data, uuid.uuid4().hex, folder)


def ratios(
    network: StagedNetwork,
    jobs: list[BlockJob],
    data: ImageData,
    cache: FeatureCache | None = None,
) -> list[float | None]:
    variance = calibrate(network, data.calibration)
    blocks = distill_pack(network, variance, jobs, data, FP32, 0, cache=cache).blocks
    assert not any(block.failure for block in blocks)
    return [block.nsr for block in blocks]


def test_kept_features_are_the_computed_ones_in_their_order(
    reference: StagedNetwork, few_images: ImageData, folder: Path | None
) -> None:
    computed = ComputedFeatures(reference, few_images, Engine.of(reference))
    kept = build(reference, few_images, folder)
    assert kept.steps(32) == computed.steps(32) == 3
    for ours, others in [
        (
            kept.training(32, [1, 2], seed=3, epoch=2),
            computed.training(32, [1, 2], seed=3, epoch=2),
        ),
        (kept.validation(32, [1, 2]), computed.validation(32, [1, 2])),
    ]:
        for one, other in zip(ours, others, strict=True):
            for number in (1, 2):
                assert one[number].stride() == other[number].stride()
                torch.testing.assert_close(one[number], other[number], rtol=1e-3, atol=1e-5)


def test_kept_features_give_the_same_nsr(
    reference: StagedNetwork, space: SearchSpace, few_images: ImageData, folder: Path | None
) -> None:
    jobs = [BlockJob(f"key{n}", n, stage.choices[7]) for n, stage in enumerate(space.stages)]
    kept = build(reference, few_images, folder)
    computed = ratios(reference, jobs, few_images)
    assert ratios(reference, jobs, few_images, kept) == pytest.approx(computed, rel=1e-2)


def test_kept_tokens_give_the_same_nsr(
    transformer: StagedNetwork, few_images: ImageData, folder: Path | None
) -> None:
    kept = build(transformer, few_images, folder)
    computed = ratios(transformer, [ATTENTION], few_images)
    assert ratios(transformer, [ATTENTION], few_images, kept) == pytest.approx(computed, rel=1e-2)


def test_memory_that_is_too_small_is_told_before_it_is_filled(
    reference: StagedNetwork, few_images: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a container, whose files tell its limit."""
    images = len(few_images.distillation_plain) + len(few_images.validation)
    kept = build(reference, few_images)
    tables = [*kept._training, *kept._validation]
    needed = kept_bytes(reference.shapes, images)
    assert needed == sum(table.nbytes for table in tables)
    (tmp_path / "memory.current").write_text("3000\n")  # of which files may go
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 1500\nactive_file 500\n")
    monkeypatch.setattr(features, "_CONTAINER", tmp_path)
    for limit, fits in ((str(needed + 1000), True), ("max", True), (str(needed + 999), False)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        with nullcontext() if fits else pytest.raises(DonnaError, match="features to 'disk'"):
            build(reference, few_images)


def test_files_of_features_have_no_name(
    reference: StagedNetwork, few_images: ImageData, tmp_path: Path
) -> None:
    kept = build(reference, few_images, tmp_path)
    assert not list(tmp_path.iterdir())
    assert next(kept.validation(8, [0]))[0].isfinite().all()


def test_disk_that_cannot_hold_the_features_is_named(
    reference: StagedNetwork, few_images: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(DonnaError, match=r"must fit into .*/none, .* 'compute'"):
        build(reference, few_images, tmp_path / "none")


@pytest.mark.parametrize("value", [1e6, torch.nan])
def test_features_beyond_float16_are_refused(
    transformer: StagedNetwork, few_images: ImageData, value: float
) -> None:
    damaged = copy.deepcopy(transformer)
    next(damaged.stem.parameters()).fill_(value)
    with pytest.raises(DonnaError, match="finite and at most 65504, but number 0"):
        build(damaged, few_images)


def test_broken_images_have_no_features(tmp_path: Path) -> None:
    members = {f"{name}/{n:03}.jpg": encoded(n) for name in ("cat", "dog") for n in range(60)}
    write_tar(tmp_path / "train.tar", members | {"cat/050.jpg": b"torn"})
    write_split(tmp_path / "validation", 3)
    write_split(tmp_path / "test", 1)
    data = load_data(DataConfig(source=str(tmp_path), augmentation=None), PREPROCESSING)
    stem, head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = StagedNetwork(stem, [nn.Conv2d(4, 4, 3)], head, (3, 16, 16))
    kept = build(network, data)
    batches = list(kept.training(60, [0], seed=0, epoch=0))
    assert [len(batch[0]) for batch in batches] == [60]  # of 119
    assert [len(batch[0]) for batch in kept.validation(4, [0])] == [4, 2]


@pytest.mark.parametrize("features", ["memory", "disk"])
def test_features_of_augmented_images_are_not_kept(features: str) -> None:
    def configured(features: str, data: DataConfig) -> RunConfig:
        library = LibraryConfig.model_validate({"features": features})
        return RunConfig(space=SpaceConfig(preset="micro"), data=data, library=library)

    augmented = DataConfig(source="images", augmentation={"hflip": 0.5})
    with pytest.raises(ConfigError, match=r"library.features must be 'compute'.*hflip.*null"):
        check_features(configured(features, augmented))
    check_features(configured("compute", augmented))
    check_features(configured(features, DataConfig(source="images", augmentation=None)))
    check_features(configured(features, DataConfig()))  # the digits know no augmentation
