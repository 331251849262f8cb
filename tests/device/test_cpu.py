"""Which hosts are alike: by what their kernel tells of the CPU."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_farm.connectors import cpu
from device_farm.connectors.cpu import OtherWork, cores_apart, cpu_hardware, cpu_name
from device_farm.connectors.onnxruntime import OnnxRuntimeConnector
from device_farm.timing.energy import energy_mj

ARM = """processor\t: {core}
BogoMIPS\t: 243.75
Features\t: fp asimd {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: {part}
CPU revision\t: 1

"""
X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: {family}
model name\t: AMD EPYC
cpu MHz\t\t: {mhz}
flags\t\t: sse2 avx2

"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu, "_CORES", tmp_path)
    yield tmp_path
    cpu._facts.cache_clear()


def write(kernel: Path, cpuinfo: str, **files: str) -> None:
    (kernel / "cpuinfo").write_text(cpuinfo)
    cpu._facts.cache_clear()
    for name, text in files.items():
        path = kernel / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_arm_cores_have_a_name_of_their_own(kernel: Path) -> None:
    write(
        kernel,
        "".join(ARM.format(core=n, part=p, features="") for n, p in enumerate(("0xd0c", "0xd05"))),
    )
    assert cpu_name([0]).endswith("0x41 0xd0c")
    assert cpu_name([1]).endswith("0x41 0xd05")
    assert cpu_hardware([0]) != cpu_hardware([1])


def test_hosts_of_one_name_may_be_unlike(kernel: Path) -> None:
    write(kernel, X86.format(family=23, mhz=2000))
    older = cpu_hardware([0])
    write(kernel, X86.format(family=23, mhz=3400))
    assert cpu_hardware([0]) == older  # what changes from moment to moment is left out
    write(kernel, X86.format(family=25, mhz=2000))
    assert cpu_name([0]) == "AMD EPYC"
    assert cpu_hardware([0]) != older
    write(kernel, X86.format(family=23, mhz=2000), cpu0__cache__index3__size="32768K")
    assert cpu_hardware([0]) != older


def test_big_and_small_cores_are_unlike(kernel: Path) -> None:
    sizes = {"cpu0__cpu_capacity": "1024", "cpu1__cpu_capacity": "446"}
    write(kernel, "".join(ARM.format(core=n, part="0xd0c", features="") for n in (0, 1)), **sizes)
    assert cpu_hardware([0]) != cpu_hardware([1])
    assert [core["cpu_capacity"] for core in cpu_hardware([0, 1])["cores"]] == ["1024", "446"]


def test_this_host_is_alike_to_itself() -> None:
    """And its digests change with what the kernel tells."""
    one, other = (OnnxRuntimeConnector(name, {}).probe() for name in ("one", "other"))
    assert (one.model, one.settings_digest) == (other.model, other.settings_digest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("device_farm.connectors.onnxruntime.cpu_hardware", lambda cores: {"isa": []})
        changed = OnnxRuntimeConnector("one", {}).probe()
    assert changed.settings_digest != one.settings_digest
    assert changed.control_digest != one.control_digest


def zone(powercap: Path, name: str, kind: str, microjoules: int) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_energy_is_that_of_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of their parts, nor that of the platform; each counter starts again from 0."""
    monkeypatch.setattr(cpu, "_POWERCAP", tmp_path)
    first = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:2", "psys", 0),
    ]
    meter = cpu.cpu_energy_meter()
    assert meter is not None
    for counter in (second, *others):
        counter.write_text("500000\n")
    assert meter() == pytest.approx(0.5)
    first.write_text("1000000\n")
    assert meter() == pytest.approx(2.5)
    first.unlink()  # as for a user who may not read it
    assert cpu.cpu_energy_meter() is None
    assert energy_mj(lambda count: [0.004] * count, meter, 4.0, 1.0) is None


def test_a_host_without_counters_has_no_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_POWERCAP", tmp_path / "none")
    assert cpu.cpu_energy_meter() is None


def test_a_run_costs_what_the_meter_sees_meanwhile() -> None:
    """One that draws 20 W and takes 4 ms a run."""
    done: list[int] = []

    def run(count: int) -> list[float]:
        done.append(count)
        return [0.004] * count

    assert energy_mj(run, lambda: 7 + 20 * 0.004 * sum(done), 4.0, 1.0) == pytest.approx(80)
    assert done == [250]  # a second of them
    assert energy_mj(run, lambda: 7.0, 4.0, 1.0) is None
    assert energy_mj(run, None, 4.0, 1.0) is None
    assert done == [250, 250]


def test_threads_get_physical_cores_of_their_own(kernel: Path) -> None:
    name = "cpu{}__topology__thread_siblings_list"
    write(kernel, "", **{name.format(core): f"{core % 2},{core % 2 + 2}" for core in range(4)})
    assert cores_apart(range(4), 1) == (3,)
    assert cores_apart(range(4), 2) == (2, 3)
    assert cores_apart([0, 1, 3], 2) == (0, 3)  # 1 and 3 are threads of one core
    assert cores_apart([1, 3], 2) == (1, 3)
    assert cores_apart(range(4), 3) == (1, 2, 3)
    write(kernel, "", **{name.format(core): str(core) for core in range(4)})
    assert cores_apart(range(4), 2) == (2, 3)
    assert cores_apart([7, 8, 9], 2) == (8, 9)  # whose topology is not told


def test_what_another_process_takes_is_told_and_not_what_this_one_does() -> None:
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    others, started, own = OtherWork(), time.monotonic(), time.process_time()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        while time.monotonic() < started + 1:
            pass
        told, seconds = others.percent(), time.monotonic() - started
        own = time.process_time() - own
        process.kill()
    taken = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - children
    of_all = 100 / ((os.cpu_count() or 1) * seconds)  # a CPU second, in percent
    assert told is not None
    assert 0.8 * taken * of_all <= told <= 105 - own * of_all  # the kernel counts in ticks


def test_where_the_kernel_does_not_tell_there_is_no_other_work(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_STAT", kernel / "stat")
    assert OtherWork().percent() is None
    (kernel / "stat").write_text("cpu  100 0 50 1000 5 0 1 2 0 0\ncpu0 1 2 3\n")
    others = OtherWork()
    time.sleep(0.02)
    (kernel / "stat").write_text("cpu  101 0 50 1002 5 0 1 3 0 0\n")
    told = others.percent()
    assert told is not None
    assert told > 0  # the hypervisor's share counts
