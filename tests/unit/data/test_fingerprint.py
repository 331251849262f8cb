"""The fingerprint of a split's images: the same for ever, and cheap for a million of them."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from donna_ray.data.files import ImageFiles, open_images
from donna_ray.data.fingerprint import fingerprint
from donna_ray.data.sources import Source
from tests.unit.data.image_files import write_split

DIGEST = "5e2e4e69011dcedf84fddd5663e8de45"


def listed(count: int) -> ImageFiles:
    """Images in a tar, of which names and sizes alone are asked for."""
    names = [f"{number % 1000:04}/image_of_some_length_{number:08}.png" for number in range(count)]
    labels, places = [number % 1000 for number in range(count)], dict.fromkeys(names, (0, 7))
    return ImageFiles(Path("x.tar"), names, labels, [], {}, places, np.zeros(count, np.uint64))


def test_a_digest_stays_as_it_is() -> None:
    """References of earlier runs have it."""
    files = listed(3)
    assert fingerprint(Source(files)) == {"images": 3, "digest": DIGEST}
    lines = [f"{name}\0{label}" for name, label in zip(files.names, files.labels, strict=True)]
    text = "\n".join([*lines, "0\0007", "1\0007", "2\0007"])
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == DIGEST


def test_the_names_are_not_held_in_memory_once_more() -> None:
    files = listed(100_000)
    tracemalloc.start()
    try:
        fingerprint(Source(files))
        assert tracemalloc.get_traced_memory()[1] < 100 * len(files)
    finally:
        tracemalloc.stop()


def test_a_folder_is_not_looked_at_for_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(tmp_path, 2)
    files = open_images(tmp_path, None, labelled=True)
    is_dir = Mock()
    monkeypatch.setattr(Path, "is_dir", is_dir)
    for index in range(len(files)):
        assert files.size(index)
        files[index][0].close()
    assert not is_dir.called
