"""Images that cannot be read are left out and named; more than 1% of them stop the pass."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from donna_ray.config import DataConfig
from donna_ray.data import ImageData, Split, load_data
from donna_ray.data.images import BrokenImage, IndexedImages
from donna_ray.errors import DonnaError
from tests.unit.data.image_files import (
    PREPROCESSING,
    encoded,
    images_of,
    labels_of,
    write_folder,
    write_shard,
    write_split,
    write_tar,
)

BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "truncated": encoded()[:400],
}


def load(config: DataConfig, workers: int = 0) -> ImageData:
    return load_data(config.model_copy(update={"loader_workers": workers}), PREPROCESSING)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_left_out_and_named(workers: int, tmp_path: Path) -> None:
    config = write_folder(tmp_path, count=150)
    sound = images_of(load(config).train)
    for number, content in enumerate(BROKEN.values()):
        (tmp_path / "train" / "cat" / f"{number:03}.png").write_bytes(content)
    train = load(config, workers).train
    assert torch.equal(images_of(train), sound[3:])
    assert labels_of(train).count(0) == 147
    assert sorted(train.broken) == ["cat/000.png", "cat/001.png", "cat/002.png"]
    assert train.broken["cat/000.png"].startswith("UnidentifiedImageError")


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_percent_stop_the_pass(workers: int, tmp_path: Path) -> None:
    config = write_folder(tmp_path, count=50)
    (tmp_path / "train" / "cat" / "007.png").write_bytes(BROKEN["text"])
    train = load(config, workers).train
    assert len(images_of(train)) == 99
    (tmp_path / "train" / "dog" / "003.png").unlink()
    with pytest.raises(DonnaError) as caught:
        images_of(train)
    for part in ("train_split", "2 (2.0%)", "cat/007.png", "dog/003.png", "Repair or remove"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("error", "times", "reads", "sound"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), 2, 3, True),
        (OSError(errno.EIO, "Input/output error"), 3, 3, False),
        (OSError("image file is truncated"), 1, 1, False),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1, 1, False),
    ],
)
def test_reading_is_tried_again_where_the_system_fails(
    error: OSError, times: int, reads: int, sound: bool
) -> None:
    """An image of a mount that comes back is not broken."""
    made = Mock(side_effect=[error] * times + [(Image.new("RGB", (4, 4)), 1)])
    dataset = MagicMock(spec=["__getitem__", "samples"], samples=[("cat/000.png", 1)])
    dataset.__getitem__.side_effect = made
    sample = IndexedImages(dataset, lambda image: torch.zeros(3, *image.size))[0]
    assert isinstance(sample, tuple) is sound
    assert made.call_count == reads


def test_broken_image_bears_its_path_or_else_its_number(tmp_path: Path) -> None:
    write_split(tmp_path, count=2)
    file = tmp_path / "dog" / "001.png"
    file.write_bytes(BROKEN["text"])
    image_folder = ImageFolder(str(tmp_path))
    columns = MagicMock(spec=["reader"])  # whose images have no path
    columns.reader.filename.return_value = None
    columns.reader.__getitem__.return_value = (io.BytesIO(BROKEN["text"]), 1)
    for dataset, name in ((image_folder, str(file)), (columns, "3")):
        found = IndexedImages(dataset, lambda image: torch.zeros(3, *image.size))[3]
        assert isinstance(found, BrokenImage)
        assert found.name == name


def test_batch_of_broken_images_alone_is_not_yielded(tmp_path: Path) -> None:
    config = write_folder(tmp_path, count=50)
    (tmp_path / "train" / "cat" / "000.png").write_bytes(BROKEN["empty"])
    train = load(config).train
    assert [len(labels) for _, labels in train.batches(1)] == [1] * 99


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_member_of_a_tar(content: bytes, tmp_path: Path) -> None:
    names = [f"{label}/{number:02}.jpg" for label in ("cat", "dog") for number in range(50)]
    members = {name: encoded() for name in names}
    write_tar(tmp_path / "val.tar", members)
    write_tar(tmp_path / "train.tar", members | {"dog/05.jpg": content})
    train = load(DataConfig(source=str(tmp_path), augmentation=None)).train
    assert len(images_of(train)) == 99
    assert list(train.broken) == ["dog/05.jpg"]


@pytest.mark.parametrize("source", ["torch/folder", "hfds"])
def test_broken_image_of_a_library(source: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "images", count=50)
    (tmp_path / "images" / "train" / "dog" / "004.png").write_bytes(BROKEN["truncated"])
    root = tmp_path / "images"
    if source == "hfds":
        source, root = f"hfds/{root}", tmp_path / "cache"
    train = load(DataConfig(source=source, root=str(root), augmentation=None)).train
    assert len(images_of(train)) == 99
    (name,) = train.broken
    assert name.endswith("dog/004.png")


def write_broken_shard(root: Path, broken: int) -> DataConfig:
    """150 images, of which the first few are broken."""
    names = {f"{number:04}.jpg": encoded(number) for number in range(150)}
    for number in range(broken):
        names[f"{number:04}.jpg"] = BROKEN["text"]
    members = {}
    for name, content in names.items():
        members |= {name: content, name.replace("jpg", "cls"): b"0"}
    write_tar(root / "train-0.tar", members)
    for name in ("val", "test"):
        write_shard(root / f"{name}-0.tar", range(5))
    return DataConfig(
        source="wds/",
        root=str(root),
        train_split="train-0.tar|150",
        validation_split="val-0.tar|5",
        test_split="test-0.tar|5",
        classes=2,
        augmentation=None,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_sample_of_a_webdataset(workers: int, tmp_path: Path) -> None:
    train = load(write_broken_shard(tmp_path, broken=1), workers).train
    assert len(images_of(train)) == 149
    sizes = [[len(labels) for _, labels in train.batches(n, shuffle_seed=0)] for n in (50, 150)]
    assert sizes == [[50, 50], [149]]
    ((name, reason),) = train.broken.items()
    assert name == f"{tmp_path / 'train-0.tar'}: 0000"
    assert "UnidentifiedImageError" in reason
    with pytest.raises(DonnaError, match=r"2 \(1\.3%\)"):
        images_of(load(write_broken_shard(tmp_path, broken=2), workers).train)


def deep(most: float) -> bytes:
    """A grey image of floats up to this."""
    values = np.full((20, 20), 0.5, np.float32)
    values[0, 0] = most
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("content", [BROKEN["truncated"], deep(2.0)], ids=["unread", "too deep"])
def test_one_image_of_a_stream_is_broken_once_however_often_it_is_read(
    content: bytes, tmp_path: Path
) -> None:
    """In each pass its shard is another loader worker's, and it comes at another place."""
    config = write_broken_shard(tmp_path, broken=0)
    for shard in range(4):
        names = [f"{number:03}" for number in range(shard * 40, shard * 40 + 40)]
        members = {f"{name}.png": encoded(int(name)) for name in names}
        labels = {f"{name}.cls": b"0" for name in names}
        if shard == 1:
            members["045.png"] = content
        pairs = zip(members.items(), labels.items(), strict=True)
        write_tar(tmp_path / f"train-{shard}.tar", dict(each for pair in pairs for each in pair))
    config = config.model_copy(update={"train_split": "train-{0..3}.tar|160"})
    train = load(config, workers=2).train
    together = load(config).train
    for epoch in range(4):
        part = train.shard(0, 2)
        for split in (train, part):
            assert sum(len(labels) for _, labels in split.batches(16, shuffle_seed=0, epoch=epoch))
        together.note(part.broken)
    assert len(train.broken) == len(together.broken) == 1


@pytest.mark.parametrize(("most", "broken"), [(1.0, 0), (2.0, 1)])
def test_deep_images_of_a_stream_are_scaled_or_named(
    most: float, broken: int, tmp_path: Path
) -> None:
    """150 grey images of floats, the last of which has values up to `most`."""
    members = {}
    for number in range(150):
        values = np.random.default_rng(number).random((20, 20), np.float32)
        values[0, 0] = most if number == 149 else 1
        file = io.BytesIO()
        Image.fromarray(values).save(file, "TIFF")
        members |= {f"{number:04}.png": file.getvalue(), f"{number:04}.cls": b"0"}
    config = write_broken_shard(tmp_path, broken=0)
    write_tar(tmp_path / "train-0.tar", members)
    train = load(config).train
    found = images_of(train)
    assert (len(found), len(train.broken)) == (150 - broken, broken)
    assert abs(float(found.mean())) < 0.05  # of -1 (black) to 1 (white)


def test_stream_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", count=50)
    (tmp_path / "images" / "train" / "dog" / "004.png").write_bytes(BROKEN["text"])
    source, cache = f"hfids/{tmp_path / 'images'}", str(tmp_path / "cache")
    config = DataConfig(
        source=source, root=cache, download=True, test_split="test", augmentation=None
    )
    with pytest.raises(DonnaError, match="must not stop before its end"):
        images_of(load(config).train)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [((9, 11), [[1, 3], [5, 7], [5, 7], [13, 15]]), ((1, 3, 5, 7), [[9, 11]] * 3 + [[13, 15]])],
)
def test_shard_repeats_a_batch_where_all_images_of_one_are_broken(
    broken: tuple[int, ...], expected: list[list[int]]
) -> None:
    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return 400

        def __getitem__(self, index: int) -> Any:
            if index in broken:
                return BrokenImage(f"{index}.png", "torn")
            return torch.full((1, 2, 2), float(index)), index

    split = Split(Images())
    first, second = (
        [labels.tolist() for _, labels in split.shard(rank, 2).batches(4)] for rank in (0, 1)
    )
    assert len(first) == len(second) == 100
    assert first[2] == [8, 10]
    assert second[:4] == expected
