"""A share of the images of train.tar and validation.tar, as a folder that a run reads."""

import tarfile
from pathlib import Path

import numpy as np

__all__ = ["image_folder"]


def image_folder(data: Path, out: Path, counts: tuple[int, int, int]) -> Path:
    """A folder with a share of the images, every so many of them.

    Args:
        data: folder with train.tar and validation.tar.
        out: where the folder goes.
        counts: of train.tar, library.tar (also of the training's) and validation.tar.
    """
    folder = out / "images" / "-".join(map(str, counts))
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in zip(("train", "library", "validation"), counts, strict=True):
        source = "validation" if name == "validation" else "train"
        target = folder / f"{name}.tar"
        if not target.exists():
            _copy_images(data / f"{source}.tar", target, count)
    return folder.resolve()


def _copy_images(source: Path, target: Path, count: int) -> None:
    temporary = target.with_suffix(".part")
    with tarfile.open(source) as tar, tarfile.open(temporary, "w") as out:
        members = sorted((each for each in tar if each.isfile()), key=lambda each: each.name)
        for index in np.linspace(0, len(members) - 1, min(count, len(members))).astype(int):
            out.addfile(members[index], tar.extractfile(members[index]))
    temporary.replace(target)
