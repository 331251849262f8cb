"""What a study looks at in the batches of its loaders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    get_worker_info,
)

import donna_ray as donna
from tests.unit.study.made import STAGES, Net, distilled, images, loader, study


class Mask(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer2(self.layer1(self.stem(images)))


class Value(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, 0]


@pytest.mark.parametrize(
    ("model", "targets", "words"),
    [
        (Mask(), torch.zeros(32, 4, 4, dtype=torch.int64), "must be a classifier's.*Give `score`"),
        (Value(), torch.zeros(32), "must be a classifier's.*Give `score`"),
        (Net(nn.Linear(16, 1)), torch.zeros(32, 1), r"validation must be labels.*`score`"),
        (Net(), torch.zeros(32, 4), r"validation must be labels.*`score`"),
    ],
)
def test_default_score_takes_labels_whatever_the_loss(
    model: nn.Module, targets: torch.Tensor, words: str
) -> None:
    given = {"loss": lambda output, _targets: output.square().mean()}
    given |= {"train": loader(targets=targets), "validation": loader(targets=targets)}
    with pytest.raises(donna.ConfigError, match=words):
        study(model, **given)
    study(model, **given, score=lambda *_: 0.5)


@pytest.mark.parametrize(("place", "setting"), [("train", "loss"), ("validation", "score")])
def test_label_of_a_later_batch_is_refused(place: str, setting: str) -> None:
    data = loader(targets=torch.arange(32).clamp(max=19) // 5)
    data.dataset.tensors[1][20:] = 4  # type: ignore[attr-defined]
    with pytest.raises(donna.ConfigError, match=rf"of {place} .* 4\. .*or give `{setting}`"):
        distilled(3, **{place: data})


@pytest.mark.parametrize("shuffle", [False, True])
def test_last_batch_of_one_image_is_left_out_of_trainings(shuffle: bool) -> None:
    head = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    one = distilled(3, model=Net(head), train=loader(33, shuffle=shuffle))
    assert one._data.train.steps(0) == 2
    assert [len(x) for x, _ in one._data.train.batches(0, shuffle_seed=1)] == [16, 16]
    assert [len(x) for x, _ in one._data.train.batches(0)] == [16, 16, 1]
    one.finetune((0, 0), epochs=2)
    with pytest.raises(donna.ConfigError, match=r"on 1 images.*larger batch_size"):
        study(Net(head), loader(33, 1))
    study(Net(), loader(4, 1))


class Told:
    """A loader of one's own."""

    def __init__(self, batches: list[Any], told: int) -> None:
        self.batches, self.told = batches, told
        self.dataset: Dataset[Any] = images(16 * told)

    def __len__(self) -> int:
        return self.told

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def batch(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 1, 8, 8), torch.arange(count) % 4


@pytest.mark.parametrize(
    ("later", "words"),
    [
        ([batch(), batch()], "gives more than 2"),
        ([batch(0)], "number 2 has none"),
        ([{"image": batch()[0]}], "number 2 is a dict"),
        ([(batch()[0] * float("nan"), batch()[1])], "batch 2 has NaN"),
    ],
)
def test_later_batches_are_looked_at(later: list[Any], words: str) -> None:
    with pytest.raises(donna.ConfigError, match=words):
        study(train=Told([batch(), *later], 2))


class Shared(IterableDataset[Any]):
    """Images of which each worker gives its share."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        share = slice(worker.id, None, worker.num_workers) if worker else slice(None)
        yield from [images(10)[row] for row in range(10)][share]


def test_workers_may_end_with_a_batch_each() -> None:
    train = DataLoader(Shared(), batch_size=4, num_workers=2)
    assert len(train) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of more samples than the length tells
        assert len([*study(train=train)._data.train.batches(4)]) == 4


ALL = images(32)


def of(*rows: int, sampled: bool = False) -> DataLoader[Any]:
    if sampled:
        return DataLoader(ALL, 8, sampler=SubsetRandomSampler(torch.tensor(rows)))
    return DataLoader(Subset(ALL, rows), 8)


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        (of(*range(16), sampled=True), of(*range(16, 32), sampled=True), None),
        (of(*range(16)), of(*range(16, 32)), None),
        (of(*range(16)), of(*range(16, 32), sampled=True), None),
        (DataLoader(ALL, 8, shuffle=True), of(*range(32)), "are the same images"),
        (of(*range(20), sampled=True), of(*range(16, 24)), "4 of 8 images of validation"),
    ],
)
def test_images_of_both_are_told_by_their_place(
    train: Any, validation: Any, words: str | None
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, state = Net(), torch.get_rng_state()
        donna.Study(model, train, validation, stages=STAGES)
    if words is None:
        assert not told
    else:
        assert words in str(told[0].message)
        assert told[0].filename == __file__
    assert torch.equal(state, torch.get_rng_state())
