"""Which finetuned network of a run is exported, and what its steps found out about it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from donna_ray.errors import ConfigError, DonnaError
from donna_ray.storage.artifacts import Artifact, StepFolder, finished_inputs, read_json

__all__ = ["choose", "finished", "tests_of"]

Point = dict[str, Any]
Finished = tuple[dict[str, Any], Artifact]


def choose(root: Path, beginning: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Id, key and latencies of the one network whose id begins so.

    The key is that of results.json or, where it does not name the network, its only one. There is
    one latency for each device and its settings.
    """
    named, finetuned = _named(root), list(finished(root, "finetune"))
    name = _matching(root, beginning, named, finetuned)
    points = _points(root, name, finetuned)
    point = named.get(name)
    if point is None and len(points) != 1:
        raise DonnaError(
            f"The network {name} must be in results.json or have one key, but {root} has "
            f"{', '.join(sorted(points))} under other settings each. Give the settings that you "
            "mean to `donna run` again: it writes results.json."
        )
    key = next(iter(points)) if point is None else PurePosixPath(point["weights"]).stem
    latencies = [each["latency"] for each in points.get(key, [])]
    if point is not None:
        latencies = [each for each in latencies if each["median_ms"] in point["shown_ms"]]
    return name, key, _one_of_each_device(latencies)


def tests_of(root: Path, name: str, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Test accuracies of a network and of its reference; none where they are not known."""
    for _, artifact in finished(root, "finetune"):
        found = artifact.result["networks"].get(name, {})
        if found.get("key") == key and "reference" in artifact.result:
            names = ("test_accuracy", "test_low", "test_high", "test_images")
            return {each: found[each] for each in names}, artifact.result["reference"]
    return {}, {}


def finished(root: Path, step: str) -> Iterator[Finished]:
    """Inputs of the intact artifacts of a step, and these, the newest first."""
    for inputs in finished_inputs(root, step):
        artifact = StepFolder(root, step, inputs).load()
        if artifact is not None:
            yield inputs, artifact


def _matching(
    root: Path, beginning: str, named: Mapping[str, Point], finetuned: Sequence[Finished]
) -> str:
    names = set(named).union(*(artifact.result["networks"] for _, artifact in finetuned))
    matches = [name for name in names if name.startswith(beginning)] or [
        name
        for name, point in named.items()
        if "-".join(map(str, point.get("architecture", ()))) == beginning
    ]
    if len(matches) != 1 or not beginning:
        raise ConfigError(
            f"The architecture must be one of the finetuned networks of {root} "
            f"({', '.join(sorted(names)) or 'there are none'}), but {len(matches)} of them "
            f"begin with {beginning!r}. Give the beginning of one"
            + ("." if matches else f", or finetune it: `donna finetune {root} {beginning}`.")
        )
    return matches[0]


def _points(root: Path, name: str, finetuned: Sequence[Finished]) -> dict[str, list[Point]]:
    """A network's points of the searches in fp32, by the key of its weights, the newest first."""
    searches = _searches(root)
    found = dict[str, list[Point]]()
    for inputs, artifact in finetuned:
        if name not in artifact.result["networks"]:
            continue
        points = found.setdefault(artifact.result["networks"][name]["key"], [])
        asked, digests = artifact.result.get("asked", {}), inputs["searches"]
        for scenario in dict.fromkeys([*digests, *asked]):
            own, front = searches.get(digests.get(scenario), ({}, []))
            if not _is_lowered(own):
                known = (*asked.get(scenario, ()), *front)
                points += [each for each in known if each["id"] == name]
    return found


def _one_of_each_device(latencies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first one, which is the newest."""
    found = dict[str, dict[str, Any]]()
    for each in latencies:
        device = [each.get(name) for name in ("device", "connector", "settings")]
        found.setdefault(json.dumps(device, sort_keys=True), each)
    return list(found.values())


def _named(root: Path) -> dict[str, Point]:
    """The finetuned networks in results.json, by id; none where it is missing.

    Each with `shown_ms`, its latencies there as a network in fp32.
    """
    path = root / "results.json"
    if not path.exists():
        return {}
    try:
        points = dict[str, Point]()
        for own in (read_json(path) or {})["scenarios"]:
            for point in (*own["front"], *own.get("asked", ())):
                if point["weights"] is not None:
                    known = points.setdefault(point["id"], {**point, "shown_ms": []})
                    known["shown_ms"] += [] if _is_lowered(own) else [point["latency"]["median_ms"]]
        return points
    except (AttributeError, KeyError, TypeError) as error:
        raise DonnaError(
            f"{path} must be as the report wrote it, but is damaged. `donna run {root}` writes it "
            "again."
        ) from error


def _is_lowered(scenario: Mapping[str, Any]) -> bool:
    """Its latencies are of other networks than the float ones that are exported."""
    return bool(scenario.get("device", {}).get("precision", "fp32") != "fp32")


def _searches(root: Path) -> dict[str, tuple[dict[str, Any], list[Point]]]:
    """Inputs and front of the finished searches, by digest."""
    return {
        artifact.digest: (inputs, artifact.result["front"])
        for folder in (root / "search").glob("*/")
        for inputs, artifact in finished(root, f"search/{folder.name}")
    }
