"""Whether this host can run searches: versions, Ray, devices, disk, permissions, GPUs."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from device_farm import connector_names
from device_farm.connector import connector_type
from device_farm.ending import explained, one_line
from device_farm.farm.joining import joining_fault
from donna_ray.storage.places import user_cache
from donna_ray.versions import VERSION, installed_version

__all__ = ["diagnosis"]

Finding = dict[str, Any]

_LEAST_FREE_GB = 5.0  # of a run of a small network; ImageNet's blocks take tens
_LEAST_SHARED_GB = 0.5  # of /dev/shm, where Ray keeps objects
_LEAST_MEMORY_GB = 4.0


def diagnosis(out: Path = Path("runs")) -> list[Finding]:
    """Checks of this host.

    Args:
        out: where runs are to be kept.

    Returns:
        Of each `check`, `state` (`ok`, `warning`: something will not work or be slow; `error`: no
        run can work), `found` and `remedy` (empty where all is well).
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "processors": _processors,
        "Ray": _ray,
        "devices": _devices,
        "disk": lambda: _disk(out),
        "permissions": lambda: _permissions(out),
        "GPUs": _gpus,
    }
    return [finding for name, check in checks.items() for finding in _safely(name, check)]


def _safely(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that breaks is a finding, and the others go on."""
    try:
        yield from check()
    except Exception as error:  # of a driver or library, which this is to find
        yield _finding(name, "error", explained(error), "Mend this, or reinstall what raised it.")


def _finding(check: str, state: str, found: str, remedy: str = "") -> Finding:
    return {"check": check, "state": state, "found": found, "remedy": remedy}


def _versions() -> Iterator[Finding]:
    yield _finding("Python", "ok", platform.python_version())
    yield _finding("donna-ray", "ok", VERSION)
    try:
        needed = [Requirement(text) for text in requires("donna-ray") or ()]
    except PackageNotFoundError:
        place = f"not checked: donna-ray is used where it lies ({Path(__file__).parents[1]})"
        remedy = "So are nodes of clusters/install.sh; else `pip install -e .` in its folder."
        yield _finding("packages", "warning", place, remedy)
        return
    wrong = []
    for each in needed:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        found = installed_version(each.name)
        if found is None:
            wrong.append(f"{each.name} is missing")
            continue
        if not each.specifier.contains(found, prereleases=True):
            wrong.append(f"{each.name} is {found}, not {each.specifier}")
    remedy = "`pip install --upgrade donna-ray`, in an environment of its own."
    words = "; ".join(wrong)
    yield _finding(
        "packages", "error" if wrong else "ok", words or "as needed", remedy * bool(wrong)
    )


def _processors() -> Iterator[Finding]:
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    remedy = "Set cluster.workers to 1; a worker takes 1 to 2 GB." * (memory < _LEAST_MEMORY_GB)
    yield _finding("CPUs", "ok", f"{cpus} for this process")
    yield _finding("memory", "warning" if remedy else "ok", f"{memory:.1f} GB", remedy)


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        yield _finding(
            "Ray", "ok", f"{version('ray')}; a run starts its own, or joins `ray start`'s"
        )
        return
    if fault := joining_fault():
        found, _, remedy = fault.partition(": ")
        yield _finding("Ray", "error", found, f"{remedy[0].upper()}{remedy[1:]}.")
    else:
        yield _finding("Ray", "ok", f"RAY_ADDRESS is {address}")


def _probed(kind: str, name: str, settings: Mapping[str, Any]) -> Finding:
    try:
        with closing(connector_type(kind)(name, settings)) as connector:
            info = connector.probe()
    except Exception as error:  # of a connector, which may be a third party's
        words = f"{name} ({kind}): {one_line(str(error))}"
        return _finding("device", "warning", words, f"See `device-farm probe {name}`.")
    return _finding("device", "ok", f"{name} ({kind}): {info.model}, {info.runtime}")


def _devices() -> Iterator[Finding]:
    """Every device that this host reaches without a farm.yaml, as `device-farm list` has them."""
    found = False
    for kind in connector_names():
        try:
            devices = connector_type(kind).discover()
        except Exception as error:  # of a connector, which may be a third party's
            words = f"cannot look for {kind!r} devices: {one_line(str(error))}"
            yield _finding("device", "warning", words, "See `device-farm list`.")
            continue
        for name, settings in devices.items():
            found = True
            yield _probed(kind, name, settings)
    if not found:
        yield _finding(
            "device", "error", "none", "See docs/device-farm.md: which devices there are."
        )


def _disk(out: Path) -> Iterator[Finding]:
    temporary = Path(tempfile.gettempdir())
    places = {"runs": _existing(out), "cache": _existing(user_cache()), "temporary": temporary}
    for name, place in places.items():
        yield _space(name, place, _LEAST_FREE_GB, "Free some space, or give another place (--out).")
    shared = Path("/dev/shm")
    if shared.is_dir():
        remedy = "Enlarge it (docker run --shm-size=2g): Ray is slow without."
        yield _space("shared memory", shared, _LEAST_SHARED_GB, remedy)


def _space(name: str, place: Path, least_gb: float, remedy: str) -> Finding:
    free = shutil.disk_usage(place).free / 1e9
    state = "warning" if free < least_gb else "ok"
    return _finding(
        f"disk, {name}", state, f"{free:.1f} GB free in {place}", remedy * (state != "ok")
    )


def _permissions(out: Path) -> Iterator[Finding]:
    """Of the places that a run writes to."""
    for name, place in (("runs", _existing(out)), ("cache", _existing(user_cache()))):
        fine = os.access(place, os.W_OK | os.X_OK)
        words = f"{place} may {'' if fine else 'not '}be written to"
        remedy = "Let it be written, or give --out (runs) or XDG_CACHE_HOME (caches)." * (not fine)
        yield _finding(f"permissions, {name}", "ok" if fine else "error", words, remedy)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.expanduser().absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        has_driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
        words = (
            "a driver is there, but torch cannot use it" if has_driver else "none: CPUs are used"
        )
        remedy = "Install the torch of your driver's CUDA; see `nvidia-smi`." * bool(has_driver)
        yield _finding("GPUs", "warning" if has_driver else "ok", words, remedy)
        return
    known = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        fine = any(
            arch.startswith(f"sm_{major}") and arch <= f"sm_{major}{minor}" for arch in known
        )
        words = f"{torch.cuda.get_device_name(number)}, sm_{major}{minor}"
        remedy = f"This torch has {', '.join(known)}: install one with sm_{major}{minor}." * (
            not fine
        )
        yield _finding(f"GPU {number}", "ok" if fine else "error", words, remedy)
    words = "set cluster.gpus_per_worker to use them: it is 0 by default"
    yield _finding("GPUs", "ok", words)
