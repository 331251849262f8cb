"""Hugging Face data: whether a split has images and whole numbers as labels, and which ones."""

from collections.abc import Iterable
from typing import Any

from donna_ray.data.images import label_of
from donna_ray.errors import ConfigError, DonnaError

__all__ = ["check_columns", "known_column"]

_IMAGE, _LABEL = "image", "label"
_WHOLE = ("int", "uint", "bool")


def check_columns(reader: Any, source: str, split: str) -> None:
    """Refuse data whose columns have other names, or labels that are no numbers of classes.

    Args:
        reader: timm's, of data that are read by index or as a stream.
        source: for messages.
        split: the same.

    Raises:
        ConfigError: with the columns, or with a label.
    """
    data = getattr(reader, "dataset", None)
    names = list(reader.builder.info.features or ()) if data is None else _own_columns(data)
    if names and not {_IMAGE, _LABEL} <= set(names):
        raise ConfigError(
            f"Hugging Face data must have the columns {_IMAGE!r} and {_LABEL!r}, but those of "
            f"{source} are {', '.join(map(repr, names))}. Rename them "
            "(`datasets.Dataset.rename_column`), save the data and name those."
        )
    if data is None or _is_whole(data.features[_LABEL]):
        return
    for number, label in enumerate(_labels(data)):
        try:
            label_of(label)
        except DonnaError as error:
            raise ConfigError(
                f"The column {_LABEL!r} must be whole numbers, 0 for the first class, but row "
                f"{number} of the split {split!r} of {source} has {label!r} "
                f"({data.features[_LABEL]}). `datasets.Dataset.class_encode_column({_LABEL!r})` "
                "numbers names; save the data then."
            ) from error


def known_column(reader: Any) -> list[int] | None:
    """The labels of data that are read by index, -1 where there is none; None of others."""
    data = getattr(reader, "dataset", None)
    if data is None:
        return None
    return [-1 if label is None else label_of(label) for label in _labels(data)]


def _labels(data: Any) -> Iterable[Any]:
    """Of all rows, without their images."""
    return data.select_columns(_LABEL)[:][_LABEL]


def _own_columns(data: Any) -> list[str]:
    """Without the empty one that timm makes where there is no `image`."""
    is_made = _IMAGE in data.column_names and data.data.column(_IMAGE).null_count == len(data)
    return [name for name in data.column_names if not (is_made and name == _IMAGE)]


def _is_whole(feature: Any) -> bool:
    return str(getattr(feature, "dtype", None)).startswith(_WHOLE)
