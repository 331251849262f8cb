"""What tells later, and on another machine, whether the images of a split are still the same."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from donna_ray.data.files import ImageFiles
from donna_ray.data.names import letters
from donna_ray.data.sources import Source

__all__ = ["changed_split", "fingerprint"]

Fingerprint = Mapping[str, Any]

_SIZED = 4_096  # images; to ask for the sizes of a million takes minutes on a network's disk


def fingerprint(source: Source) -> dict[str, Any]:
    """`images`, how many; of images in files also `digest`, as plain JSON.

    The digest is of all names and labels and of the size of at most 4,096 images. No image is read.
    """
    found: dict[str, Any] = {"images": len(source)}
    if isinstance(source.dataset, ImageFiles):
        text = "\n".join(_lines(source.dataset))
        found["digest"] = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
    return found


def _lines(files: ImageFiles) -> list[str]:
    """Names and labels, and sizes, in an order that is the same however a system writes accents."""
    named = sorted(zip(map(letters, files.names), files.labels, range(len(files)), strict=True))
    some = np.linspace(0, len(named) - 1, min(_SIZED, len(named))).astype(int).tolist()
    sizes = [f"{number}\0{files.size(named[number][2])}" for number in some]
    return [f"{name}\0{label}" for name, label, _ in named] + sizes


def changed_split(
    before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]
) -> tuple[str, str] | None:
    """The first split that is not as it was, by its key, and how it differs; None where all are."""
    for key, old in before.items():
        new = now.get(key, old)
        if old["images"] != new["images"]:
            return key, f"has {new['images']} images where it had {old['images']}"
        if old.get("digest") != new.get("digest"):
            count = old["images"]
            return key, f"has {count} images as before, but names, classes or sizes of files differ"
    return None
