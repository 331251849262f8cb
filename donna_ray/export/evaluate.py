"""`donna evaluate`: an exported folder is executed, by what stands in it and nothing else.

`config.json` says how images are prepared, `model.onnx` is what runs; `card.json` what is claimed.
"""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from device_farm import DeviceError, Workload, make_connector
from device_farm.alone import measure_alone, sustain_alone
from device_farm.connector import connector_type
from device_farm.farm.config import default_cache
from donna_ray.data import Split
from donna_ray.errors import ConfigError, DonnaError
from donna_ray.export.exported import read_export
from donna_ray.export.images import Outputs, evaluated_images
from donna_ray.finetune.tested import wilson

__all__ = ["evaluated"]

_BATCH = 64


def evaluated(
    folder: Path,
    data: str | None,
    device: str,
    threads: int | None = None,
    sustained: float | None = None,
) -> dict[str, Any]:
    """Accuracy and latency of an exported network.

    Args:
        folder: of ``export_network``.
        data: a folder with a folder of images for each class, or what `data.source` takes, of which
            the test images are used; None: those of the data that the card names.
        device: a connector of the device farm; with the settings of the card's first latency there.
        threads: of a device that has some; None: the card's.
        sustained: seconds that it is run without pause, after the latency is known.

    Returns:
        `network`, `data`, `accuracy` (`accuracy`, its 95% interval `low` and `high`, `right` of
        `images`), `latency` (a measurement of the device farm), `sustained` (see
        ``device_farm.alone.sustain_alone``; None if not asked for) and `stated`: the card's
        `test_accuracy` (null where it was not tested) and `latency`.

    Raises:
        ConfigError: the folder is no whole export, or the images have an empty name, cannot be
            opened or are of others than its classes.
        DonnaError: the device cannot measure it.
    """
    if data is not None and not data.strip():
        raise ConfigError(
            "--data must name images, but is empty. Name a folder, or leave it out: then those "
            "that the network was made for are taken."
        )
    network = read_export(folder)
    card, source = network.card, data or network.card.data.source
    outputs = Outputs(card.classes, card.class_names)
    images, numbers = evaluated_images(outputs, card.data, network.prepared, data)
    right, count = _right_answers(network.session, images, numbers)
    if not count:
        raise ConfigError(f"There must be images to evaluate on, but {source} has none.")
    tested = wilson(right, count)
    latency, told = _latency(network.workload, device, card.latency, threads, sustained)
    return {
        "network": card.architecture,
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
        "stated": {"test_accuracy": card.test_accuracy, "latency": card.latency},
    }


def _right_answers(
    session: onnxruntime.InferenceSession, images: Split, numbers: list[int]
) -> tuple[int, int]:
    """Of how many images the label's output has the largest logit; and of how many all."""
    outputs = np.array(numbers)
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else _BATCH
    right, count = 0, 0
    for batch, labels in images.batches(_BATCH):
        parts = (part.numpy() for part in batch.split(step))
        logits = np.concatenate([session.run(None, {"input": part})[0] for part in parts])
        right += int((logits.argmax(1) == outputs[labels.numpy()]).sum())
        count += len(labels)
    return right, count


def _settings(stated: list[dict[str, Any]], device: str, threads: int | None) -> dict[str, Any]:
    """Those of the card, as far as they are not the connector's own: both are then of the same.

    Not the cores of other threads, nor of another host.
    """
    own = connector_type(device).settings_type.model_construct().model_dump(mode="json")
    found = (each.get("settings", {}) for each in stated if each.get("connector") == device)
    settings = {name: each for name, each in next(found, {}).items() if each != own.get(name)}
    known = settings.get("threads", own.get("threads"))
    cores, is_here = set(settings.get("cores") or ()), device == "onnxruntime"
    if threads not in (None, known) or (is_here and not cores <= os.sched_getaffinity(0)):
        settings.pop("cores", None)
    if threads is not None and "threads" in own:
        settings["threads"] = threads
    return settings


def _latency(
    workload: Workload,
    device: str,
    stated: list[dict[str, Any]],
    threads: int | None,
    sustained: float | None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A measurement, and then of a device that does not rest."""
    try:
        settings = _settings(stated, device, threads)
        with closing(make_connector(device, device, settings)) as connector:
            latency = measure_alone(connector, workload, default_cache()).to_json()
            if sustained is None:
                return latency, None
            return latency, sustain_alone(connector, workload, default_cache(), sustained)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from error
    except DeviceError as error:
        raise DonnaError(f"The network could not be measured on {device}: {error}") from error
