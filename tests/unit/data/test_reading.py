"""Processes that read images: kept from pass to pass, and nothing that a pass gives changes."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest
import torch
from timm.data import create_transform
from torch.utils.data import Dataset

from donna_ray.data import Split
from donna_ray.data.images import seeded_generators
from donna_ray.data.pixels import in_bytes
from donna_ray.data.reading import Readers
from donna_ray.errors import DonnaError

from .image_files import image

HOW: dict[str, Any] = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


class Pids(Dataset[Any]):
    """An image is its index, a label the process that read it; index 7 of `torn` fails."""

    def __init__(self, *, torn: bool = False, error: type[Exception] = RuntimeError) -> None:
        self.torn, self.error = torn, error

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if self.torn and index == 7:
            raise self.error("no such disk")
        return torch.full((1, 2, 2), float(index)), os.getpid()


def pids(split: Split, **how: Any) -> set[int]:
    return {pid for _, labels in split.batches(3, **how) for pid in labels.tolist()}


def order(split: Split, **how: Any) -> list[float]:
    return [each.item() for images, _ in split.batches(3, **how) for each in images[:, 0, 0, 0]]


def test_processes_are_kept_over_passes_and_splits() -> None:
    readers = Readers()
    one, other = (Split(Pids(), 2, readers=readers) for _ in range(2))
    first = pids(one, shuffle_seed=1)
    assert os.getpid() not in first
    assert len(first) == 2
    assert pids(one, shuffle_seed=1, epoch=1) == first
    assert pids(other) == pids(one.first(6)) == pids(one.shard(0, 2)) == first
    assert pids(one, start=1, stop=3) == first
    assert order(one, start=1, stop=3) == [3, 4, 5, 6, 7, 8]
    alone = Split(Pids())
    assert order(one, shuffle_seed=1, epoch=1) == order(alone, shuffle_seed=1, epoch=1)


def test_an_error_ends_the_processes_at_once() -> None:
    """While it is held, as where it is told; torch would wait 5 s for each of them later."""
    torn = Split(Pids(torn=True, error=DonnaError), 2, readers=Readers())
    before = set(multiprocessing.active_children())
    with pytest.raises(DonnaError, match="no such disk") as held:
        pids(torn)
    assert set(multiprocessing.active_children()) <= before
    assert held.value.__traceback__ is not None


def test_a_pass_that_is_left_or_fails_disturbs_no_other() -> None:
    readers = Readers()
    split, torn = Split(Pids(), 2, readers=readers), Split(Pids(torn=True), 2, readers=readers)
    next(split.batches(3))
    assert order(split) == list(range(12))
    under_way = split.batches(3)
    next(under_way)
    assert order(split) == list(range(12))
    assert [images[0, 0, 0, 0].item() for images, _ in under_way] == [3, 6, 9]
    with pytest.raises(RuntimeError, match="no such disk"):
        pids(torn)
    assert order(split) == list(range(12))


@pytest.mark.parametrize("augmentation", [None, {}, {"re_prob": 1.0}])
def test_bytes_that_are_normalised_late_are_timms_images(
    augmentation: dict[str, Any] | None,
) -> None:
    how = HOW if augmentation is None else {**HOW, "is_training": True, **augmentation}
    whole = create_transform(**how)
    first, last = in_bytes(whole)
    if augmentation:  # erases after it has normalised
        assert (first, last) == (whole, None)
        return
    with seeded_generators(0):
        expected = whole(image())
    with seeded_generators(0):
        early = first(image())
    assert early.dtype == torch.uint8
    assert last is not None
    assert torch.equal(last(early[None])[0], expected)


def test_processes_that_do_not_know_a_later_data_set_are_not_kept() -> None:
    class Numbers(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return torch.full((1, 1, 1), float(index)), index

    readers, first, second = Readers(), Numbers(), Numbers()
    passing = readers.read(first, [[0], [1]], 0, 0, 1)
    next(passing)
    readers.add(second)
    assert len([*passing]) == 1
    [(batch, _)] = readers.read(second, [[3]], 0, 0, 1)
    assert batch is not None
    assert batch[1].tolist() == [3]
