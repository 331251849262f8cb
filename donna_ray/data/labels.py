"""The labels of all images of an opened split, where they are known before an image is read."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from donna_ray.data.columns import known_column
from donna_ray.data.files import ImageFiles

__all__ = ["known_labels"]


def known_labels(dataset: Any) -> NDArray[np.int64] | None:
    """Of each image, -1 where it has none; None where only the images tell.

    Args:
        dataset: files, or what timm opened.
    """
    labels = np.asarray(_found(dataset))
    if labels.ndim == 2:  # QMNIST's first column is the digit, the others say who wrote it
        labels = labels[:, 0]
    return labels.astype(np.int64) if labels.shape == (len(dataset),) else None


def _found(dataset: Any) -> Any:
    if isinstance(dataset, ImageFiles):
        return dataset.labels
    if (column := known_column(getattr(dataset, "reader", None))) is not None:
        return column
    if (rank := getattr(dataset, "target_type", None)) is not None:  # of iNaturalist's
        return [_label_of(dataset, category, *rank) for category, _ in dataset.index]
    return getattr(dataset, "targets", ())


def _label_of(dataset: Any, category: int, rank: str) -> int:
    label: int = category if rank == "full" else dataset.categories_map[category][rank]
    return label
