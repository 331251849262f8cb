"""What a scenario's search measured, candidate by candidate."""

from pathlib import Path
from typing import Any

from device_farm.timing.measurement import hottest_c
from donna_ray.errors import DonnaError
from donna_ray.latency.figures import Latency, drift_percent
from donna_ray.report.predicted import Predictions
from donna_ray.storage.artifacts import read_json

__all__ = ["measured"]


def measured(file: Path, reference: Latency, predictions: Predictions) -> dict[str, Any]:
    """`measured`, `failed` and `timed_seconds` of ``Search``.

    Args:
        file: the candidates that the search left.
        reference: its latency on the same device.
        predictions: of the run, to calibrate those of the search.

    Raises:
        DonnaError: the file is missing or torn.
    """
    found = read_json(file)
    if found is None:
        raise DonnaError(
            f"A finished search must have its candidates, but {file} is missing or torn. Remove "
            "that folder: the same command searches anew, with the measurements it has."
        )
    known = found["measured"]
    latencies = [reference, *(each["latency"] for each in known)]
    final = predictions.final([each["predicted_accuracy"] for each in known])
    return {
        "measured": [
            {
                "id": each["id"],
                "architecture": each["architecture"],
                "predicted_accuracy": accuracy,
                **_figures(each["latency"]),
            }
            for each, accuracy in zip(known, final, strict=True)
        ],
        "failed": found["failed"],
        "timed_seconds": sum(each["median_ms"] * each.get("n", 1) for each in latencies) / 1e3,
    }


def _figures(latency: Latency) -> dict[str, Any]:
    return {
        "median_ms": latency["median_ms"],
        "n": latency.get("n", 1),
        "ci_percent": latency.get("ci_percent", 0.0),
        "drift_percent": drift_percent(latency),
        "temperature_c": hottest_c(latency.get("environment") or {}),
    }
