"""How far a run is: its steps, the progress of the one under way, and what was spent so far."""

import fcntl
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from donna_ray.config import RunConfig, load_config
from donna_ray.run.ownership import MARKER
from donna_ray.run.progress import PROGRESS
from donna_ray.storage.artifacts import newest_manifests, read_json

__all__ = ["next_steps", "run_status"]

Facts = dict[str, Any]

_COUNTED = ("phase", "done", "total", "unit")


def run_status(root: Path, steps: Sequence[str], at_url: Facts | None = None) -> Facts:
    """The state of a run folder, read without holding it.

    Args:
        root: of a run of this host, or of one whose folder is shared.
        steps: their names, in order.
        at_url: what is known at its URL, if it is a working copy (``run.copies.seen_at``).

    Returns:
        `run`, `state` (`running`, `stopped` or `finished`), `started` (ISO 8601, null where it is
        not known), `process` (id, null where none holds the folder or its copy at a URL), `host`
        (of that process, null where it is this one), `steps` (`step`, `state`: `finished`,
        `running`, `stopped` or `waiting`; `seconds`, of one that runs those of its phase;
        `image_passes`; of one under way `phase`, `done`, `total`, `unit` and `seconds_left`, each
        null where it is not known yet) and `cost` (`seconds` and `image_passes` of the finished
        steps).

    Raises:
        ConfigError: the folder's configuration cannot be read.
    """
    config = load_config(root / "config.yaml")
    known = at_url or {
        "started": (read_json(root / MARKER) or {}).get("made"),
        "host": None,
        "process": _holder(root / ".lock"),  # at a URL, also another one that fetches the copy
    }
    process = known["process"]
    under_way = (known["host"] is None and read_json(root / PROGRESS)) or {}
    current = str(under_way.get("step", "")).split("/")[0].split(" ")[0]
    rows = [_step(root, name, config) for name in steps]
    if current in steps:
        place = list(steps).index(current)
        rows[place] = _under_way(rows[place], under_way, running=process is not None)
        rows[place + 1 :] = [_waiting(name) for name in steps[place + 1 :]]
    finished = [row for row in rows if row["state"] == "finished"]
    state = "finished" if len(finished) == len(rows) else "stopped"
    return {
        "run": config.name,
        "state": state if process is None else "running",
        **known,
        "steps": rows,
        "cost": {name: sum(row[name] for row in finished) for name in ("seconds", "image_passes")},
    }


def next_steps(root: Path, name: str) -> list[str]:
    """What a person can do with a finished run, a line each: commands to copy.

    Args:
        root: of the run.
        name: the folder as the person wrote it.
    """
    results = read_json(root / "results.json") or {}
    headlines = [(each["headline"] or {}).values() for each in results.get("scenarios", [])]
    answers = [answer["id"] for each in headlines for answer in each if answer is not None]
    network, name = answers[0] if answers else "ARCH", quote(name)
    return [
        "Next:",
        f"  open {name}/report.html, and choose a network",
        f"  donna export {name} {network} --to my-network    # weights, ONNX, Python, model card",
        "  donna evaluate my-network                 # its accuracy and latency, from its files",
        f"  donna finetune {name} ID-OR-BLOCKS          # any other network of the space",
        "  donna init                                # the same for your own model and data",
    ]


def _step(root: Path, name: str, config: RunConfig) -> Facts:
    """A step by its newest artifacts: one, or one a scenario."""
    parts = [name]
    if name == "report":  # it leaves no artifact, and is made anew by every command
        made = (read_json(root / "results.json") or {}).get("made") or {}
        return {**_waiting(name), **({"state": "finished"} if made.get("finished") else {})}
    if name == "search":
        parts = [f"{name}/{scenario.name}" for scenario in config.all_scenarios()]
    if name in ("library", "predictor") and config.in_int8:
        parts = [name, f"{name}/int8"]
    newest = (next(newest_manifests(root, part), None) for part in parts)
    known = [each for each in newest if each is not None]
    if len(known) < len(parts):
        return _waiting(name)
    passes = [each["result"].get("cost", {}).get("image_passes", 0) for each in known]
    seconds = sum(each["seconds"] for each in known)
    return {**_waiting(name), "state": "finished", "seconds": seconds, "image_passes": sum(passes)}


def _waiting(name: str) -> Facts:
    unknown = dict.fromkeys((*_COUNTED, "seconds_left"))
    return {"step": name, "state": "waiting", "seconds": 0.0, "image_passes": 0, **unknown}


def _under_way(row: Facts, known: Facts, *, running: bool) -> Facts:
    elapsed = time.time() - known["began"] if running else None
    counted = {name: known.get(name) for name in _COUNTED}
    left = None
    if elapsed is not None and counted["done"]:
        left = elapsed * (counted["total"] - counted["done"]) / counted["done"]
    state = "running" if running else "stopped"
    own = {"state": state, "seconds": elapsed or 0.0, "seconds_left": left}
    return {**_waiting(row["step"]), **own, **counted}


def _holder(path: Path) -> int | None:
    """The process that holds a run's lock; None where nobody does."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        words = path.read_text().strip()
        return int(words) if words.isdigit() else 0
    except OSError:
        return None
