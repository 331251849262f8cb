"""`donna evaluate`: an exported folder is executed, by what stands in it and nothing else.

`config.json` says how images are prepared, `model.onnx` is what runs; `card.json` what is claimed.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from device_farm import DeviceError, Workload, make_connector
from device_farm.alone import measure_alone, sustain_alone
from device_farm.farm.config import default_cache
from donna_ray.config import DataConfig
from donna_ray.data import Split, load_test
from donna_ray.data.files import class_folders
from donna_ray.data.sources import open_files
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.finetune.tested import wilson
from donna_ray.storage.artifacts import read_json

__all__ = ["evaluated"]

_PREPARED = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_BATCH = 64
_SPLITS = ("train", "training")


def evaluated(
    folder: Path, data: str | None, device: str, threads: int, sustained: float | None = None
) -> dict[str, Any]:
    """Accuracy and latency of an exported network.

    Args:
        folder: of ``export_network``.
        data: a folder with a folder of images for each class, or what `data.source` takes, of which
            the test images are used; None: those of the data that the card names.
        device: a connector of the device farm.
        threads: of a device that has some.
        sustained: seconds that it is run without pause, after the latency is known.

    Returns:
        `network`, `data`, `accuracy` (`accuracy`, its 95% interval `low` and `high`, `right` of
        `images`), `latency` (a measurement of the device farm), `sustained` (see
        ``device_farm.alone.sustain_alone``; None if not asked for) and `stated`: the card's
        `test_accuracy` (null where it was not tested) and `latency`.

    Raises:
        ConfigError: the folder is no export, or the images have an empty name, cannot be opened or
            are of others than its classes.
        DonnaError: the device cannot measure it.
    """
    if data is not None and not data.strip():
        raise ConfigError(
            "--data must name images, but is empty. Name a folder, or leave it out: then those "
            "that the network was made for are taken."
        )
    card, config = (_read(folder, name) for name in ("card.json", "config.json"))
    try:
        known = config["pretrained_cfg"]
        prepared = {name: known[name] for name in _PREPARED}
        source = data or card["data"]["source"]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"NET must be a folder that `donna export` wrote, but card.json or config.json in "
            f"{folder} lacks {error}. Export the network again."
        ) from None
    images = _images(card, prepared, data)
    right, count = _right_answers(folder / "model.onnx", images)
    if not count:
        raise ConfigError(f"There must be images to evaluate on, but {source} has none.")
    tested = wilson(right, count)
    latency, told = _latency(folder / "model.onnx", device, threads, sustained)
    return {
        "network": card["architecture"],
        "data": source,
        "accuracy": {
            "accuracy": tested["test_accuracy"],
            "low": tested["test_low"],
            "high": tested["test_high"],
            "right": right,
            "images": count,
        },
        "latency": latency,
        "sustained": told,
        "stated": {"test_accuracy": card.get("test_accuracy"), "latency": card["latency"]},
    }


def _read(folder: Path, name: str) -> dict[str, Any]:
    value = read_json(folder / name)
    if not isinstance(value, dict):
        raise ConfigError(
            f"NET must be a folder that `donna export` wrote, but {folder} has no {name} that can "
            "be read. Correct the path, or export the network again."
        )
    return value


def _images(card: dict[str, Any], prepared: dict[str, Any], data: str | None) -> Split:
    """The images to evaluate on, prepared as the configuration says."""
    path = Path(data).expanduser() if data is not None else None
    if path is not None and path.is_dir() and _has_classes(path, card["class_names"]):
        return _of_folder(card, prepared, path)
    config = DataConfig.model_validate(card["data"] if data is None else {"source": data})
    return load_test(config, prepared)


def _has_classes(path: Path, names: list[str]) -> bool:
    """Whether its folders are of classes, not of splits: these have the classes in them."""
    called_so = [name for name in _SPLITS if (path / name).exists()]
    within = any((path / split / name).is_dir() for split in called_so for name in names)
    return set(called_so) <= set(names) and not within


def _of_folder(card: dict[str, Any], prepared: dict[str, Any], path: Path) -> Split:
    names = card["class_names"] or class_folders(path)
    if len(names) != card["classes"]:
        raise ConfigError(
            f"The images must have a folder for each of the network's {card['classes']} classes, "
            f"but {path} has {len(names)}. Give the images that it was made for."
        )
    source = open_files(path, "--data", names)
    images = source.images(_transform(prepared))
    return Split(images, 0, "--data", card["classes"], folder_sizes=source.folder_sizes())


def _transform(prepared: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    plain = create_transform(**prepared, is_training=False)
    mode = "L" if prepared["input_size"][0] == 1 else "RGB"

    def transform(image: Image.Image) -> Tensor:
        tensor: Tensor = plain(image.convert(mode))
        return tensor

    return transform


def _right_answers(model: Path, images: Split) -> tuple[int, int]:
    """Of how many images the label has the largest logit; and of how many all."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else _BATCH
    right, count = 0, 0
    for batch, labels in images.batches(_BATCH):
        parts = (part.numpy() for part in batch.split(step))
        logits = np.concatenate([session.run(None, {"input": part})[0] for part in parts])
        right += int((logits.argmax(1) == labels.numpy()).sum())
        count += len(labels)
    return right, count


def _latency(
    model: Path, device: str, threads: int, sustained: float | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A measurement, and then of a device that does not rest."""
    settings = {"threads": threads} if device == "onnxruntime" else {}
    try:
        workload = Workload.from_onnx(model)  # of one image, where it takes any number
        with closing(make_connector(device, device, settings)) as connector:
            latency = measure_alone(connector, workload, default_cache()).to_json()
            if sustained is None:
                return latency, None
            return latency, sustain_alone(connector, workload, default_cache(), sustained)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from error
    except DeviceError as error:
        raise DonnaError(f"The network could not be measured on {device}: {error}") from error
