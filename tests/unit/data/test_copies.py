"""Images are read from decoded copies on the node's disk, and are what a network would see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from donna_ray.config import DataConfig, ReferenceConfig, RunConfig, SpaceConfig
from donna_ray.data import check_data, inputs_without_test, load_data, load_test
from donna_ray.data.held_out import origin_of_validation
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.pipeline import check

from .image_files import PREPROCESSING, encoded, images_of, labels_of, write_tar

COUNT = 24  # training images a class
PIXELS = 32


def picture(number: int, size: tuple[int, int] = (60, 45)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (5, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


def write_pictures(root: Path) -> None:
    for part, count in (("train", COUNT), ("validation", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                size = (60, 45) if number % 2 else (45, 70)
                file = root / part / name / f"{number:03}.jpg"
                picture(100 * label + number, size).save(file, quality=90)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's."""
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    return tmp_path / "disk"


def configured(data: Path, **how: Any) -> DataConfig:
    given = {"augmentation": None, "cache_pixels": PIXELS, **how}
    return DataConfig.model_validate({"source": str(data), **given})


def copies_in(disk: Path) -> list[Path]:
    return sorted(file for file in disk.rglob("*") if file.is_file())


def shrunk(data: Path, target: Path) -> DataConfig:
    """The same images as PNG, scaled down by Pillow."""
    for file in data.rglob("*.jpg"):
        image = Image.open(file)
        scale = PIXELS / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        place = target / file.relative_to(data).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        image.resize(size, Image.Resampling.BICUBIC).save(place)
    return configured(target, cache_pixels=None)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_those_scaled_down_in_every_pass(
    data: Path, disk: Path, tmp_path: Path, workers: int
) -> None:
    expected = load_data(shrunk(data, tmp_path / "small"), PREPROCESSING)
    ours = load_data(configured(data, loader_workers=workers), PREPROCESSING)
    for one, other in ((ours.train, expected.train), (ours.validation, expected.validation)):
        for epoch in range(2):
            how = {"shuffle_seed": 1, "epoch": epoch}
            assert torch.equal(images_of(one, **how), images_of(other, **how))
            assert labels_of(one, **how) == labels_of(other, **how)
        assert torch.equal(images_of(one), images_of(other))
    assert len(copies_in(disk)) == len(ours.train) + len(ours.validation)


def test_copies_serve_other_processes_after_the_source_is_decoded_once(
    data: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = images_of(load_data(configured(data), PREPROCESSING).train)
    made = {file: file.stat().st_mtime_ns for file in copies_in(disk)}

    def decode(*_: object) -> None:
        raise AssertionError("an image is decoded again")

    monkeypatch.setattr("donna_ray.data.copies.open_rgb", decode)
    again = load_data(configured(data, augmentation={}), PREPROCESSING)
    assert torch.equal(images_of(again.calibration), first)
    assert len(images_of(again.train)) == len(first)
    assert {file: file.stat().st_mtime_ns for file in copies_in(disk)} == made


def test_unlabelled_images_are_copied_and_those_of_the_test_are_not(
    data: Path, disk: Path, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number in range(5):
        picture(900 + number).save(others / f"{number}.jpg")
    config = configured(data, unlabelled=str(others))
    loaded = load_data(config, PREPROCESSING)
    assert len(images_of(load_test(config, PREPROCESSING))) == 4
    assert copies_in(disk) == []
    assert labels_of(loaded.distillation) == [-1] * 5
    assert len(copies_in(disk)) == 5


def test_small_images_are_kept_as_they_are_and_deep_ones_are_dimmed(
    tmp_path: Path, disk: Path
) -> None:
    for part in ("train", "validation", "test"):
        for name in "ab":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(2):
                grey = np.full((20, 24), 257 * (100 + number), np.uint16)
                file = tmp_path / "data" / part / name / f"{number}.png"
                Image.fromarray(grey).save(file)
    plain = load_data(configured(tmp_path / "data", cache_pixels=None), PREPROCESSING)
    ours = load_data(configured(tmp_path / "data"), PREPROCESSING)
    assert torch.equal(images_of(ours.train), images_of(plain.train))
    assert ours.train.brightest() == plain.train.brightest() == pytest.approx(101 / 255)
    assert {file.stat().st_size for file in copies_in(disk)} == {28 + 3 * 20 * 24}


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_counted_as_without_copies(tmp_path: Path, workers: int) -> None:
    members = {f"{name}/{n:03}.jpg": encoded(n) for name in ("cat", "dog") for n in range(60)}
    write_tar(tmp_path / "train.tar", members | {"cat/050.jpg": b"torn"})
    for part in ("validation", "test"):
        write_tar(
            tmp_path / f"{part}.tar", {f"{name}/0.jpg": encoded(0) for name in ("cat", "dog")}
        )
    found = []
    for pixels in (None, 16):
        config = configured(tmp_path, cache_pixels=pixels, loader_workers=workers)
        train = load_data(config, PREPROCESSING).train
        found.append([[len(images_of(train)) for _ in range(2)], set(train.broken)])
    assert found[0] == found[1]
    assert found[0][0] == [119, 119]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_image_that_has_changed_is_copied_anew(data: Path, tmp_path: Path, kind: str) -> None:
    def load() -> torch.Tensor:
        if kind == "tar":
            shutil.make_archive(str(tmp_path / "packed" / "train"), "tar", data / "train")
            for part in ("validation", "test"):
                shutil.make_archive(str(tmp_path / "packed" / part), "tar", data / part)
        source = tmp_path / "packed" if kind == "tar" else data
        return images_of(load_data(configured(source), PREPROCESSING).train)

    before = load()
    picture(999).save(data / "train" / "cat" / "003.jpg", quality=91)
    changed = [
        n for n, pair in enumerate(zip(load(), before, strict=True)) if not torch.equal(*pair)
    ]
    assert changed == [3]


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": content, "zeros": bytes(len(content))}.get(how, content[:20]))


@pytest.mark.parametrize("how", ["flipped", "zeros", "torn"])
def test_a_damaged_copy_is_made_again(data: Path, disk: Path, how: str) -> None:
    first = images_of(load_data(configured(data), PREPROCESSING).train)
    for file in copies_in(disk)[::5]:
        damage(file, how)
    assert torch.equal(images_of(load_data(configured(data), PREPROCESSING).train), first)


def test_a_killed_process_loses_and_corrupts_nothing(
    data: Path, disk: Path, tmp_path: Path
) -> None:
    """Two processes make the same copies; both are killed in the middle."""
    code = (
        "import sys; from pathlib import Path; from donna_ray.data import load_data;"
        "from tests.unit.data.test_copies import PREPROCESSING, configured;"
        "train = load_data(configured(Path(sys.argv[1])), PREPROCESSING).train;"
        "[None for _ in iter(lambda: [*train.batches(4)], None)]"
    )
    makers = [subprocess.Popen([sys.executable, "-c", code, str(data)]) for _ in range(2)]
    deadline = time.monotonic() + 600
    while (made := len(copies_in(disk))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    for maker in makers:
        os.kill(maker.pid, signal.SIGKILL)
        maker.wait()
    assert made >= 5
    expected = load_data(shrunk(data, tmp_path / "small"), PREPROCESSING).train
    assert torch.equal(
        images_of(load_data(configured(data), PREPROCESSING).train), images_of(expected)
    )
    unfinished = next(disk.glob("*/unfinished"))
    assert len(copies_in(disk)) - len(copies_in(unfinished)) == 2 * COUNT


def test_what_killed_processes_left_is_removed(data: Path, disk: Path) -> None:
    images_of(load_data(configured(data), PREPROCESSING).validation)
    unfinished = next(disk.glob("*/unfinished"))
    for name, age in (("old", 7200), ("new", 60)):
        (unfinished / name).write_bytes(b"...")
        os.utime(unfinished / name, (time.time() - age,) * 2)
    images_of(load_data(configured(data), PREPROCESSING).train)
    assert [file.name for file in unfinished.iterdir()] == ["new"]


def told_of(free: int, files: int, folder: Path) -> SimpleNamespace:
    """What statvfs tells of a folder on a disk with room for so many bytes and files."""
    return SimpleNamespace(f_bavail=free, f_frsize=1, f_files=10**6, f_favail=files)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_too_small_is_told_before_the_first_copy(
    data: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Of 54 images; each takes two pages of 4096 bytes, whichever way it lies."""
    needed = (2 * COUNT + 6) * 2 * 4096
    config = configured(data, loader_workers=workers)
    for free, files, words in (
        (needed - 1, 10**6, r"54 images .* take 0.000442 GB, and 0.000442 GB are free. Make room"),
        (needed, 53, r"54 are missing and it has room for 53 files"),
    ):
        monkeypatch.setattr(os, "statvfs", partial(told_of, free, files))
        with pytest.raises(DonnaError, match=words) as caught:
            images_of(load_data(config, PREPROCESSING).train)
        assert len(str(caught.value).splitlines()) == 1
        assert copies_in(disk) == []
    monkeypatch.setattr(os, "statvfs", partial(told_of, needed, 54))
    assert len(images_of(load_data(config, PREPROCESSING).train)) == 2 * COUNT


def test_copies_that_are_there_take_no_room(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_data(configured(data), PREPROCESSING)
    first = images_of(loaded.train), images_of(loaded.validation)
    (data / "train" / "cat" / "000.jpg").touch()  # one is to be made again, in its place
    monkeypatch.setattr(os, "statvfs", partial(told_of, 0, 0))
    again = load_data(configured(data), PREPROCESSING)
    assert torch.equal(images_of(again.train), first[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_refuses_is_told(
    data: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """No folder, one that cannot be made, and another user's."""
    (disk / "file").touch()
    for place in ("none", "file"):
        monkeypatch.setenv("TMPDIR", str(disk / place))
        with pytest.raises(DonnaError, match=rf"read in {disk}/{place}/donna-.*set TMPDIR to a"):
            images_of(load_data(configured(data, loader_workers=workers), PREPROCESSING).train)
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(DonnaError, match=r"donna-ray-images-12345, .*this user alone can write in"):
        images_of(load_data(configured(data), PREPROCESSING).train)


def test_a_disk_that_is_full_is_told(
    data: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DonnaError, match="No space left on device"):
        images_of(load_data(configured(data), PREPROCESSING).train)
    assert copies_in(disk) == []


def test_what_makes_no_sense_is_refused_early(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_pixels of at least image_size, but has 32 and 40"):
        configured(data, image_size=40)
    for source in ("digits", "wds/images", "hfds/images"):
        with pytest.raises(ConfigError, match=f"data.cache_pixels goes with .*{source}"):
            check_data(DataConfig(source=source, root=str(tmp_path), cache_pixels=32))
    check_data(configured(data))
    larger = PREPROCESSING | {"input_size": (3, 30, 30), "crop_pct": 0.9}
    with pytest.raises(ConfigError, match=r"at least .* for evaluation, 33 .* but is 32"):
        load_data(configured(data), larger)
    load_data(configured(data, cache_pixels=33), larger)
    micro = ReferenceConfig(model="donna_micro"), SpaceConfig(preset="micro")
    run = RunConfig(data=configured(data, cache_pixels=35), reference=micro[0], space=micro[1])
    with pytest.raises(ConfigError, match=r"at least .* for evaluation, 36 .* but is 35"):
        check(run)


def test_keys_tell_images_that_are_scaled_down(data: Path) -> None:
    plain, ours = configured(data, cache_pixels=None), configured(data)
    for told in (inputs_without_test, origin_of_validation):
        assert "cache_pixels" not in told(plain)
        assert told(ours) == told(plain) | {"cache_pixels": PIXELS}
