"""Which images an exported network is evaluated on, with labels in the order of its outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from donna_ray.config import DataConfig
from donna_ray.data import Split, load_test
from donna_ray.data.files import class_folders, letters
from donna_ray.data.held_out import check_splits_differ, hold_out, with_test
from donna_ray.data.pixels import in_bytes
from donna_ray.data.sources import Source, class_names, kind_of, open_files, open_split
from donna_ray.errors import ConfigError

__all__ = ["Outputs", "evaluated_images"]

_SPLITS = ("train", "training")


@dataclass(frozen=True)
class Outputs:
    """What an exported network gives.

    Attributes:
        classes: how many logits.
        names: of the classes in their order; empty where the data that it was made for have none.
    """

    classes: int
    names: Sequence[str]

    def numbers_of(self, names: Sequence[str], where: str) -> list[int]:
        """For each label of the data `where`, whose classes have these names, the network's.

        Raises:
            ConfigError: a class is none of the network's; or one of them has no names, and their
                numbers differ.
        """
        if not (names and self.names):
            if names and len(names) != self.classes:
                raise self._refused(where, f"has {len(names)}")
            return list(range(self.classes))
        known = {letters(name): number for number, name in enumerate(self.names)}
        if others := [name for name in names if letters(name) not in known]:
            raise self._refused(where, f"has also {others[0]!r}")
        return [known[letters(name)] for name in names]

    def _refused(self, where: str, what: str) -> ConfigError:
        own = ", ".join(map(repr, self.names[:5])) + (", ..." if len(self.names) > 5 else "")
        return ConfigError(
            f"The images must be of the network's {self.classes} classes"
            f"{f' ({own})' if own else ''}, but {where} {what}. Give the images that it was made "
            "for, or rename their classes."
        )


def evaluated_images(
    outputs: Outputs, own: DataConfig, prepared: dict[str, Any], data: str | None
) -> tuple[Split, list[int]]:
    """The images, and for each of their labels the number of the network's output.

    Args:
        outputs: of the network.
        own: the data that it was made for.
        prepared: how images are prepared, as timm's data configuration.
        data: a folder with a folder of images for each class, or what `data.source` takes, of which
            the test images are taken; None, and what is the network's own: its own test images.

    Raises:
        ConfigError: they cannot be opened, or are of other classes or channels than the network's.
    """
    path = None if data is None else Path(data).expanduser()
    config = own if data is None else DataConfig(source=data, root=own.root)
    if _same_source(config, own):
        config = own
    elif path is not None and path.is_dir() and _has_classes(path, outputs.names):
        names = outputs.names or class_folders(path)
        return _split(open_files(path, "--data", names), outputs, prepared, str(path))
    if kind_of(config.source) == "digits":
        names = [] if config is own else list(map(str, range(10)))  # their numbers never change
        return _digits(config, outputs.numbers_of(names, "digits"), prepared)
    return _split(_test_of(config, outputs), outputs, prepared, config.source)


def _same_source(config: DataConfig, own: DataConfig) -> bool:
    if {kind_of(config.source), kind_of(own.source)} == {"files"}:
        return Path(config.source).resolve() == Path(own.source).resolve()
    return config.source == own.source


def _has_classes(path: Path, names: Sequence[str]) -> bool:
    """Whether its folders are of classes, not of splits: these have the classes in them."""
    called_so = [name for name in _SPLITS if (path / name).exists()]
    within = any((path / split / name).is_dir() for split in called_so for name in names)
    return set(called_so) <= set(names) and not within


def _test_of(config: DataConfig, outputs: Outputs) -> Source:
    """The test images of a data set, whose folders are of the network's classes if it has some."""
    config = with_test(config)
    check_splits_differ(config)
    names = list(outputs.names)
    if not names and kind_of(config.source) == "files":
        names = class_names(open_split(config, "train_split"))
    if config.test_fraction is None:
        return open_split(config, "test_split", names)
    return hold_out(config, open_split(config, "validation_split", names), names)[1]


def _split(
    source: Source, outputs: Outputs, prepared: dict[str, Any], where: str
) -> tuple[Split, list[int]]:
    numbers = outputs.numbers_of(class_names(source), where)
    transform, normalised = in_bytes(create_transform(**prepared, is_training=False))
    images = Split(
        source.images(_in_mode("L" if prepared["input_size"][0] == 1 else "RGB", transform)),
        name="--data",
        classes=len(numbers),
        folder_sizes=source.folder_sizes(),
        broken=dict(source.unread),
        normalised=normalised,
    )
    images.check_broken()
    return images, numbers


def _in_mode(mode: str, transform: Callable[[Any], Tensor]) -> Callable[[Image.Image], Tensor]:
    return lambda image: transform(image.convert(mode))


def _digits(
    config: DataConfig, numbers: list[int], prepared: dict[str, Any]
) -> tuple[Split, list[int]]:
    if prepared["input_size"][0] != 1:
        raise ConfigError(
            f"The images must have the network's {prepared['input_size'][0]} channels, but the "
            "digits have 1. Give a folder of images."
        )
    return replace(load_test(config, prepared), name="--data", classes=len(numbers)), numbers
