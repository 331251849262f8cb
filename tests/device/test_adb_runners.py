"""How the output of the programs on phones is read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from phone import perf_test

from device_farm import DeviceError, ModelError
from device_farm.connectors.adb.runners.base import RunPlan, Unit, file_digest
from device_farm.connectors.adb.runners.command import CommandRunner
from device_farm.connectors.adb.runners.onnxruntime import OnnxRuntimeRunner
from device_farm.connectors.adb.runners.tflite import TfliteRunner

WARMUP = "count=10 first=9000 curr=8000 min=8000 max=9000 avg=8500 std=9 p5=8000 median=8100 p95=9"
SUMMARY = "Inference timings in us: Init: 9, Warmup (avg): 8500, Inference (avg): 4.2e+03"


def plan(runs: int) -> RunPlan:
    return RunPlan("/b", "/m", "/r", warmup=10, runs=runs, threads=1)


@pytest.mark.parametrize(
    ("last", "microseconds"),
    [
        ("count=3 first=1 curr=2 min=1 max=5 avg=4.3e+03 std=9 p5=1 median=4.1e+03 p95=5", 4100),
        ("count=1 curr=4000", 4000),
        ("INFO: count=3 curr=4000(all same)", 4000),
        ("count=3 first=4000 curr=5000 min=4000 max=5000 avg=4.3e+03 std=9", 4300),
    ],
)
def test_tflite_is_read_after_its_warmup(tmp_path: Path, last: str, microseconds: float) -> None:
    runner = TfliteRunner(binary=perf_test(tmp_path), convert=("cp",))
    output = f"{WARMUP}\n\n{last}\n\n{SUMMARY}\nMemory (bytes): count=0\n"
    read = runner.seconds(output, "", plan(3))
    assert read.seconds == pytest.approx([microseconds / 1e6] * 3)
    assert read.single is None
    [alone] = runner.seconds(output, "", plan(1)).single or []
    assert alone > 0


@pytest.mark.parametrize(
    ("printed", "unit", "resolution"),
    [
        (["3", "3", "4"], "ms", 1e-3),
        (["3.40", "3.4", "3.41"], "ms", 1e-5),
        (["0.00342123", "0.0035", "1e-05"], "s", 1e-8),
        (["4.2e+03", "4.3e+03", "4e+03"], "us", 1e-4),
        (["4.2e+03"], "us", 1e-4),
    ],
)
def test_what_is_printed_has_a_resolution(
    tmp_path: Path, printed: list[str], unit: Unit, resolution: float
) -> None:
    binary, pattern = perf_test(tmp_path), r"took (\S+)"
    runner = CommandRunner(binary=binary, command_line=("{binary}",), pattern=pattern, unit=unit)
    read = runner.seconds("".join(f"took {each}\n" for each in printed), "", plan(3))
    assert read.resolution == pytest.approx(resolution)


@pytest.mark.parametrize("figure", ["nan", "inf", "soon"])
def test_what_is_no_number_is_no_latency(tmp_path: Path, figure: str) -> None:
    binary, pattern = perf_test(tmp_path), r"took (\S+)"
    runner = CommandRunner(binary=binary, command_line=("{binary}",), pattern=pattern, unit="s")
    with pytest.raises(DeviceError, match="printed no latency"):
        runner.seconds(f"took {figure}\n", "", plan(1))


def test_litert_tells_an_average_only(tmp_path: Path) -> None:
    runner = TfliteRunner(binary=perf_test(tmp_path), convert=("cp",))
    output = "Warmup (avg): 9.5 ms (1 runs)\nInference (avg): 1.25 ms (50 runs)\n"
    assert runner.seconds(output, "", plan(2)).seconds == pytest.approx([1.25e-3] * 2)
    with pytest.raises(DeviceError, match="printed no latency"):
        runner.seconds("count=0\n", "", plan(2))


def test_memory_and_loading_are_read_where_they_are_told(tmp_path: Path) -> None:
    perf = OnnxRuntimeRunner(binary=perf_test(tmp_path))
    printed = "Session creation time cost: 0.0183 s\nPeak working set size: 50905088 bytes\n"
    told = {"init_ms": pytest.approx(18.3), "peak_memory_mb": pytest.approx(50.905088)}
    assert perf.costs(printed, "") == told
    assert perf.costs(printed.partition("\n")[0], "m,0.001,50905088,2,1\n") == told
    tflite = TfliteRunner(binary=perf_test(tmp_path), convert=("cp",))
    delta = "INFO: Memory footprint delta from the start of the tool (MB): init=6.25 overall=8"
    assert tflite.costs(f"{SUMMARY}\n{delta}\n", "") == {
        "init_ms": pytest.approx(0.009),
        "peak_memory_mb": pytest.approx(8 * 1.048576),
    }
    assert tflite.costs("count=0\n", "") == {}


def test_runs_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    runner = OnnxRuntimeRunner(binary=perf_test(tmp_path))
    rows = "".join(f"m,0.00{number},1,2,{number}\n" for number in range(1, 6))
    with pytest.raises(DeviceError, match="printed no latency"):
        runner.seconds("", rows, plan(9))


def test_a_program_built_anew_has_another_digest(tmp_path: Path) -> None:
    program = perf_test(tmp_path)
    runner = OnnxRuntimeRunner(binary=program)
    before, digest = runner.identity, file_digest(program)
    stated = program.stat()
    program.write_bytes(bytes(stated.st_size))
    os.utime(program, ns=(stated.st_atime_ns, stated.st_mtime_ns + 1))
    assert file_digest(program) != digest
    assert runner.identity != before


def test_a_converter_that_dies_silently_is_told_with_its_signal(tmp_path: Path) -> None:
    dies = ("sh", "-c", "kill -SEGV $$", "{onnx}", "{output}")
    runner = TfliteRunner(binary=perf_test(tmp_path), convert=dies)
    with pytest.raises(ModelError, match=r"converter sh refuses the model: .*SIGSEGV"):
        runner.converted(b"")


@pytest.mark.parametrize("end", ["kill -KILL $$", "kill -TERM $$", "exit 137"])
def test_a_converter_that_somebody_ends_blames_no_model(tmp_path: Path, end: str) -> None:
    """As a host does that lacks memory; in a container by a shell, which tells it by its status."""
    runner = TfliteRunner(binary=perf_test(tmp_path), convert=("sh", "-c", end, "{onnx}"))
    with pytest.raises(DeviceError, match="or what ends programs there") as caught:
        runner.converted(b"")
    assert type(caught.value) is DeviceError


@pytest.mark.parametrize(("status", "kind"), [(2, ModelError), (1, DeviceError)])
def test_what_is_no_fault_of_the_model_is_told_by_the_own_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[DeviceError]
) -> None:
    own = ("sh", "-c", f"exit {status}", "{onnx}", "{output}")
    monkeypatch.setattr("device_farm.connectors.adb.runners.tflite._OWN", own)
    with pytest.raises(DeviceError) as caught:
        TfliteRunner(binary=perf_test(tmp_path)).converted(b"")
    assert type(caught.value) is kind


def test_a_folder_of_temporary_files_that_is_full_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    runner = TfliteRunner(binary=perf_test(tmp_path), convert=("true",))
    with pytest.raises(DeviceError, match=r"does not \(.*No such file.*set TMPDIR"):
        runner.converted(b"")


def test_what_killed_conversions_left_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left, under_way = (tmp_path / f"device-farm-conversion-{name}" for name in ("old", "new"))
    for folder in (left, under_way):
        folder.mkdir()
        (folder / "model.onnx").touch()
    os.utime(left, (0, 0))
    work = 'cp "$0" "$1"; mktemp -d'  # which stays, as where it is killed
    runner = TfliteRunner(
        binary=perf_test(tmp_path), convert=("sh", "-c", work, "{onnx}", "{output}")
    )
    assert runner.converted(b"model") == b"model"
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [under_way]
