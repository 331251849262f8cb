"""What tells later, and on another machine, whether the images of a split are still the same."""

import hashlib
from collections.abc import Iterator, Mapping
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
        found["digest"] = _digest(_lines(source.dataset))
    return found


def _digest(lines: Iterator[str]) -> str:
    """Of a text of these lines, which is never whole in memory: there may be millions."""
    found, between = hashlib.sha256(), b""
    for line in lines:
        found.update(between + line.encode(errors="surrogateescape"))
        between = b"\n"
    return found.hexdigest()[:32]


def _lines(files: ImageFiles) -> Iterator[str]:
    """Names and labels, and sizes, in an order that is the same however a system writes accents."""
    order = sorted(range(len(files)), key=lambda index: letters(files.names[index]))
    for index in order:
        yield f"{letters(files.names[index])}\0{files.labels[index]}"
    for number in np.linspace(0, len(order) - 1, min(_SIZED, len(order))).astype(int).tolist():
        yield f"{number}\0{files.size(order[number])}"


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
