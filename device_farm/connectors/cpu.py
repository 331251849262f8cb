"""What kind of CPU a host has, as far as a latency depends on it, its energy, and what else it does
(Linux)."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from device_farm.timing.energy import Meter

__all__ = ["OtherWork", "cores_apart", "cpu_energy_meter", "cpu_hardware", "cpu_name"]

_CPUINFO = Path("/proc/cpuinfo")
_CORES = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")
_POWERCAP = Path("/sys/class/powercap")
_KIND = (
    *("vendor_id", "cpu family", "model", "stepping"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),
)
_ISA = ("flags", "Features")
_OF_A_CORE = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")


def cpu_name(cores: Sequence[int]) -> str:
    """The CPU's name as the kernel gives it; where it gives none (Arm), its implementer and part.

    Args:
        cores: that a model runs on.
    """
    facts = _facts(cores[0])
    if "model name" in facts:
        return facts["model name"]
    part = [facts[key] for key in ("CPU implementer", "CPU part") if key in facts]
    return " ".join([platform.machine(), *part])


def cpu_hardware(cores: Sequence[int]) -> dict[str, Any]:
    """Kind, instruction sets and cache sizes of the first core; capacity and clock of each.

    Hosts of one name, such as "AMD EPYC", differ in these, and so do the big and the small cores of
    one host. What the kernel does not tell is left out.
    """
    facts = _facts(cores[0])
    caches = sorted(_CORES.glob(f"cpu{cores[0]}/cache/index*/size"))
    return {
        "kind": {key: facts[key] for key in _KIND if key in facts},
        "isa": sorted(word for key in _ISA for word in facts.get(key, "").split()),
        "caches": [_text(path) for path in caches],
        "cores": [_core(core) for core in cores],
    }


def cores_apart(usable: Sequence[int], count: int) -> tuple[int, ...]:
    """So many cores, the highest numbers first, in ascending order.

    Two hardware threads of one core share what computes: both are taken only where there are not
    enough cores.
    """
    firsts: list[int] = []
    seconds: list[int] = []
    seen: set[Any] = set()
    for core in sorted(usable, reverse=True):
        siblings = _CORES / f"cpu{core}" / "topology" / "thread_siblings_list"
        physical = _text(siblings) if siblings.exists() else core
        (seconds if physical in seen else firsts).append(core)
        seen.add(physical)
    return tuple(sorted((firsts + seconds)[:count]))


class OtherWork:
    """What other processes, and the hypervisor, take of this host's CPUs from now on."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = self._now()

    def percent(self) -> float | None:
        """Of the time of all CPUs since then; None where the kernel does not tell."""
        now, busy, own = self._now()
        if busy is None or self._busy is None or now <= self._started:
            return None
        others = busy - self._busy - (own - self._own)
        return 100 * max(others, 0.0) / ((now - self._started) * (os.cpu_count() or 1))

    def _now(self) -> tuple[float, float | None, float]:
        return time.monotonic(), _busy_seconds(), time.process_time()


def _busy_seconds() -> float | None:
    """Of all CPUs together, since the host was started; None where /proc does not tell."""
    try:
        fields = _STAT.read_text().partition("\n")[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cpu_energy_meter() -> Meter | None:
    """Joules of all CPU packages of the host together, by RAPL.

    None where the kernel has no such counters, or does not let this user read them.
    """
    zones = [zone for zone in sorted(_POWERCAP.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
        return _Rapl(packages) if packages else None
    except OSError:
        return None


class _Rapl:
    """Counts on where a counter starts again from 0, as each does within minutes or hours."""

    def __init__(self, packages: Sequence[Path]) -> None:
        self._counters = [package / "energy_uj" for package in packages]
        self._ends = [int(_text(package / "max_energy_range_uj")) for package in packages]
        self._last, self._used = self._read(), 0

    def __call__(self) -> float:
        now = self._read()
        for was, value, end in zip(self._last, now, self._ends, strict=True):
            self._used += value - was + (end if value < was else 0)
        self._last = now
        return self._used / 1e6

    def _read(self) -> list[int]:
        return [int(_text(counter)) for counter in self._counters]


def _core(core: int) -> dict[str, str]:
    paths = {name: _CORES / f"cpu{core}" / name for name in _OF_A_CORE}
    return {name: _text(path) for name, path in paths.items() if path.exists()}


@functools.cache  # on a host of many cores the kernel takes long to write it
def _facts(core: int) -> dict[str, str]:
    """Of /proc/cpuinfo, those of a core; those of the first where it is not named."""
    blocks = list(map(_fields, _CPUINFO.read_text().strip().split("\n\n")))
    own = [block for block in blocks if block.get("processor") == str(core)]
    return (own or blocks)[0]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _text(path: Path) -> str:
    return path.read_text().strip()
