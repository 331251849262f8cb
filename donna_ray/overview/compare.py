"""What two runs have in common and where they differ: settings, figures, fronts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from device_farm.reading import read_yaml
from donna_ray.config import load_config
from donna_ray.errors import MissingArtifactError
from donna_ray.report.results import read_results
from donna_ray.search.exact.hypervolume import hypervolume, reference_point

__all__ = ["compared"]

Facts = dict[str, Any]


def compared(first: Path, second: Path) -> Facts:
    """Two finished runs beside each other.

    Args:
        first: a run folder.
        second: another one.

    Returns:
        `runs` (their folders), `settings` (those that differ: `key` and two `values`), `figures`
        (`name` and two `values`, null where a run has none) and `scenarios`: of those that both
        have, by `name`, `same_device`, `hypervolume` (two, in parts of that of both fronts
        together: what predicted accuracy and latency dominate; null where both are empty),
        `calibrated` (false where a front has raw predictions only: then both are compared by
        these) and `networks` (ids on both fronts).

    Raises:
        ConfigError: a run's configuration cannot be read.
        MissingArtifactError: a run has no results yet.
        DonnaError: its results are of another version, or not as the schema has them.
    """
    results = [_results(each) for each in (first, second)]
    settings = [_settings(each) for each in (first, second)]
    keys = list(dict.fromkeys([*settings[0], *settings[1]]))
    figures = [_figures(each) for each in results]
    names = list(dict.fromkeys([*figures[0], *figures[1]]))
    return {
        "runs": [str(first), str(second)],
        "settings": [
            {"key": key, "values": [each.get(key) for each in settings]}
            for key in keys
            if settings[0].get(key) != settings[1].get(key)
        ],
        "figures": [
            {"name": name, "values": [each.get(name) for each in figures]} for name in names
        ],
        "scenarios": _scenarios(*results),
    }


def _results(root: Path) -> Facts:
    if not (root / "results.json").exists():
        raise MissingArtifactError(
            f"Runs that are compared must have results, but {root} has no results.json. Finish it "
            f"first: `donna run {root}`."
        )
    return read_results(root).model_dump(mode="json")


def _settings(root: Path) -> Facts:
    path = root / "config.yaml"
    load_config(path)
    return _flat(read_yaml(path.read_bytes()))


def _flat(value: Any, key: str = "") -> Facts:
    """Nested mappings as one, with keys `a.b`."""
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    found: Facts = {}
    for name, each in value.items():
        found |= _flat(each, f"{key}.{name}" if key else str(name))
    return found


def _figures(results: Facts) -> Facts:
    """What a person asks first, by name."""
    cost = results["cost"].values()
    found = {
        "reference's test accuracy": _at(results, "reference", "test_accuracy"),
        "blocks distilled": _at(results, "library", "size"),
        "Kendall tau": _at(results, "predictor", "kendall_tau", "value"),
        "seconds": sum(each["seconds"] for each in cost),
        "image passes": sum(each["image_passes"] for each in cost),
    }
    for scenario in results["scenarios"]:
        found |= _answers(scenario)
    return found


def _answers(scenario: Facts) -> Facts:
    whose = "" if scenario["name"] == "default" else f"{scenario['name']}: "
    words = {
        "fastest_as_accurate": "fastest, not less accurate",
        "most_accurate_as_fast": "most accurate, not slower",
    }
    found = {f"{whose}reference, ms": _at(scenario, "reference_latency", "median_ms")}
    for key, name in words.items():
        found[f"{whose}{name}, ms"] = _at(scenario, "headline", key, "median_ms")
        found[f"{whose}{name}, test accuracy"] = _at(scenario, "headline", key, "test_accuracy")
    return found


def _at(value: Any, *keys: str) -> Any:
    """What is there under keys in keys; None where one of them is missing or null."""
    for key in keys:
        value = (value or {}).get(key)
    return value


def _scenarios(first: Facts, second: Facts) -> list[Facts]:
    others = {each["name"]: each for each in second["scenarios"]}
    pairs = [(own, others[own["name"]]) for own in first["scenarios"] if own["name"] in others]
    return [_scenario(own, other) for own, other in pairs]


def _scenario(own: Facts, other: Facts) -> Facts:
    calibrated = all(_is_calibrated(each) for each in (own, other) if each["front"])
    accuracy = "predicted_accuracy" if calibrated else "raw_accuracy"
    return {
        "name": own["name"],
        "same_device": own["device"] == other["device"],
        "hypervolume": _shares(_points(own, accuracy), _points(other, accuracy)),
        "calibrated": calibrated,
        "networks": sorted({p["id"] for p in own["front"]} & {p["id"] for p in other["front"]}),
    }


def _is_calibrated(scenario: Facts) -> bool:
    """In each precision by itself; `predictor.calibration` is of fp32."""
    return any(each["predicted_accuracy"] != each["raw_accuracy"] for each in scenario["front"])


def _points(scenario: Facts, accuracy: str) -> np.ndarray:
    """(n, 2): accuracy, latency in ms; n may be 0, as under a limit that none keeps."""
    rows = [(each[accuracy], each["latency"]["median_ms"]) for each in scenario["front"]]
    return np.array(rows).reshape(-1, 2)


def _shares(first: np.ndarray, second: np.ndarray) -> list[float | None]:
    both = np.vstack([first, second])
    if not len(both):
        return [None, None]
    reference = reference_point(both)
    together = hypervolume(both, reference)
    own = [hypervolume(each, reference) if len(each) else 0.0 for each in (first, second)]
    return [each / together if together else None for each in own]
