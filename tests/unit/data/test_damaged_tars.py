"""Tars that do not give all of their images are refused: tarfile itself says nothing of it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from donna_ray.config import DataConfig
from tests.unit.data.image_files import labels_of, load, refuse, split, write_tar

BLOCK = tarfile.BLOCKSIZE
Change = Callable[[bytes, tarfile.TarInfo], bytes]


def write(root: Path, *, nested: bool = False) -> DataConfig:
    """20 images a class; of the training, in a tar a class if they are nested."""
    for part in ("train", "validation", "test"):
        write_tar(root / f"{part}.tar", split(count=20))
    if nested:
        pack(root, (root / "train.tar").read_bytes())
    return DataConfig(source=str(root), augmentation=None)


def pack(root: Path, inner: bytes) -> None:
    write_tar(root / "train.tar", {"in.tar": inner})


def member_of(tar: bytes, number: int = 30) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmembers()[number]


def end_of(tar: bytes) -> int:
    """Of the members."""
    last = member_of(tar, -1)
    return last.offset_data + -(-last.size // BLOCK) * BLOCK


def damaged(tar: bytes, at: tarfile.TarInfo) -> bytes:
    byte = at.offset + 10
    return tar[:byte] + bytes([tar[byte] ^ 255]) + tar[byte + 1 :]


CHANGES: list[tuple[Change, str]] = [
    (damaged, "damaged or cut off after b/9.png"),
    (lambda tar, at: tar[: at.offset + 100], "damaged or cut off after b/9.png"),
    (lambda tar, at: tar[: at.offset], "ends after b/9.png without"),
    (lambda tar, at: tar[: end_of(tar)], "ends after b/19.png without"),
    (lambda tar, at: tar[: at.offset - 3], "unexpected end of data"),
    (lambda tar, at: tar + tar, "more follows it (after b/19.png)"),
    (lambda tar, at: tar + bytes(3 * 2**20) + b"x", "more follows it"),
    (lambda tar, at: bytes(1024) + tar, "more follows it (at its begin)"),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_tar_that_would_lose_images_is_refused(
    change: Change, words: str, nested: bool, tmp_path: Path
) -> None:
    config, path = write(tmp_path), tmp_path / "train.tar"
    whole = path.read_bytes()
    broken = change(whole, member_of(whole))
    if nested:
        pack(tmp_path, broken)
    else:
        path.write_bytes(broken)
    is_named = nested and not words.startswith("unexpected")
    refuse(config, words, f"{path}/in.tar" if is_named else str(path))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zeros", [BLOCK, 2 * BLOCK, 20 * BLOCK, 2**21])
def test_any_number_of_zeros_is_an_end(zeros: int, nested: bool, tmp_path: Path) -> None:
    config, path = write(tmp_path), tmp_path / "train.tar"
    whole = path.read_bytes()
    ended = whole[: end_of(whole)] + bytes(zeros)
    if nested:
        pack(tmp_path, ended)
    else:
        path.write_bytes(ended)
    assert labels_of(load(config).train) == [0] * 20 + [1] * 20
