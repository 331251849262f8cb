"""The adb connector: a real model, measured on a phone that is a process of this host."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from phone import Phone, perf_test, quick_perf_test

from device_farm import DeviceError, DeviceLost, ModelError, Throttled, Workload
from device_farm.connectors.adb.connector import AdbConnector
from device_farm.connectors.adb.keys import load_signer
from device_farm.testing import ConnectorConformance
from device_farm.timing.control import control_workload
from device_farm.timing.protocol import ProtocolSettings

BRIEF = ProtocolSettings(blocks=2, runs_per_block=3, precision_percent=1000, interleave=False)
UNFIXED = "cmd power set-fixed-performance-mode-enabled false"
MODE = [
    UNFIXED,  # whoever left it so
    "input keyevent KEYCODE_WAKEUP",
    "svc power stayon true",
    "cmd power set-fixed-performance-mode-enabled true",
    UNFIXED,
    "settings put global stay_on_while_plugged_in 3",
]
"""The calls of a phone's tools when the screen is on and the performance fixed."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this host's key and its program."""
    folder = tmp_path_factory.mktemp("host")
    load_signer(folder / "adbkey")
    quick_perf_test(folder)
    return folder


@pytest.fixture(scope="module")
def module_phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    phone = Phone(tmp_path_factory.mktemp("phones") / "SERIAL7").start()
    yield phone
    phone.kill()


@pytest.fixture
def phone(module_phone: Phone) -> Iterator[Phone]:
    yield module_phone
    module_phone.set("thermal_status", "0")
    module_phone.fail()


def settings(phone: Phone, host: Path, **more: Any) -> dict[str, Any]:
    runner = {"kind": "onnxruntime_perf_test", "binary": str(host / "onnxruntime_perf_test")}
    usual = {"address": phone.address, "key": str(host / "adbkey"), "runner": runner}
    return {**usual, "warmup_runs": 1, **more}


@pytest.fixture
def connector(phone: Phone, host: Path) -> Iterator[AdbConnector]:
    connector = AdbConnector("phone", settings(phone, host))
    yield connector
    connector.close()


class TestConformance(ConnectorConformance):
    @pytest.fixture
    def connector(self, phone: Phone, host: Path) -> Iterator[AdbConnector]:
        connector = AdbConnector("phone", settings(phone, host))
        yield connector
        connector.close()


def test_measures_with_all_that_is_needed_to_judge_it(
    phone: Phone, host: Path, tmp_path: Path
) -> None:
    """Here ONNX Runtime really runs."""
    runner = {"kind": "onnxruntime_perf_test", "binary": str(perf_test(tmp_path))}
    more = {"cores": [0], "screen": "on", "fixed_performance": True, "runner": runner}
    connector = AdbConnector("phone", settings(phone, host, **more))
    (phone.folder / "state/log").unlink(missing_ok=True)
    measurement = connector.measure(connector.prepare(control_workload()), BRIEF)
    assert measurement.n >= 6
    assert measurement.device == "Acme A1 (Android 14)"
    assert 0.01 < measurement.blocks_p20_ms < measurement.blocks_p90_ms < 1000
    environment = measurement.environment
    assert environment["serial"] == "SERIAL7"
    assert environment["affinity"] == "1"
    assert environment["runtime"].startswith("onnxruntime_perf_test ")
    assert (environment["screen_set"], environment["fixed_performance"]) == ("on", True)
    for when in ("before", "after"):
        assert environment[when]["thermal_status"] == 0
        assert environment[when]["temperatures_c"] == {"AP": 31.5}
        assert environment[when]["battery_temperature_c"] == 30.1
        assert environment[when]["screen"] == "Awake"
    assert "address" not in measurement.settings
    assert phone.log() == MODE


def test_everything_is_brought_once(phone: Phone, connector: AdbConnector, host: Path) -> None:
    shutil.rmtree(phone.tmp / "device-farm/bin", ignore_errors=True)
    model = phone.tmp / f"device-farm/models/{control_workload().digest}.onnx"
    handle = connector.prepare(control_workload())
    staged = model.stat()
    [program] = (phone.tmp / "device-farm/bin").glob("*/onnxruntime_perf_test")
    brought = program.stat()
    again = AdbConnector("phone", settings(phone, host))
    assert again.prepare(control_workload()) == handle
    assert (model.stat().st_ino, program.stat().st_ino) == (staged.st_ino, brought.st_ino)
    program.write_text("#!/bin/sh\nexit 1\n")  # altered on the phone
    anew = AdbConnector("phone", settings(phone, host))
    anew.measure(anew.prepare(control_workload()), BRIEF)
    assert program.read_bytes() == (host / "onnxruntime_perf_test").read_bytes()


def test_a_hot_phone_is_throttled(phone: Phone, connector: AdbConnector) -> None:
    handle = connector.prepare(control_workload())
    phone.set("thermal_status", "2")
    with pytest.raises(Throttled, match="but is 2: let it cool down"):
        connector.measure(handle, BRIEF)
    phone.set("thermal_status", "0")
    assert connector.measure(handle, BRIEF).n == 6


def test_a_phone_comes_back(phone: Phone, connector: AdbConnector) -> None:
    handle = connector.prepare(control_workload())
    phone.kill()
    for _ in range(2):
        with pytest.raises(DeviceLost):
            connector.measure(handle, BRIEF)
    phone.start()
    assert connector.measure(handle, BRIEF).n == 6


def test_commands_whose_end_is_lost_cost_no_measurement(
    phone: Phone, connector: AdbConnector
) -> None:
    phone.fail(loses_ends=True)
    measurement = connector.measure(connector.prepare(control_workload()), BRIEF)
    assert (measurement.n, list(phone.tmp.glob("device-farm/results.*"))) == (6, [])


def test_interchangeable_phones_have_one_identity(phone: Phone, host: Path) -> None:
    one = AdbConnector("one", settings(phone, host)).probe()
    other = AdbConnector("other", settings(phone, host, command_timeout_s=5)).probe()
    pinned = AdbConnector("pinned", settings(phone, host, cores=[0])).probe()
    assert one.settings_digest == other.settings_digest != pinned.settings_digest


def test_program_of_the_users_own(phone: Phone, host: Path, tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text('#!/bin/sh\necho "$2 $3"; echo "took 2500 us"; echo "took 1500 us" > "$4"\n')
    runner = {
        "kind": "command",
        "binary": str(program),
        "command_line": ["{binary}", "{model}", "{runs};{threads}", "$(x) 'y'", "{results}"],
        "pattern": r"took (\d+) us",
        "unit": "us",
    }
    connector = AdbConnector("phone", settings(phone, host, runner=runner))
    measurement = connector.measure(connector.prepare(control_workload()), BRIEF)
    assert (measurement.median_ms, measurement.n) == (1.5, 8)


def test_tflite_is_converted_and_its_median_read(phone: Phone, host: Path, tmp_path: Path) -> None:
    program = tmp_path / "benchmark_model"
    program.write_text(
        "#!/bin/sh\n"
        'grep -q converted "${1#--graph=}" || exit 1\n'
        'echo "count=1 curr=9000"\n'
        'echo "count=3 first=4000 curr=4100 min=4000 max=4200 avg=4.1e+03 std=9"\n'
        'echo "Inference timings in us: Init: 9, First inference: 9, Warmup (avg): 9, '
        'Inference (avg): 4.1e+03"\n'
    )
    script = "import sys; open(sys.argv[2], 'w').write('converted')"
    convert = [sys.executable, "-c", script, "{onnx}", "{output}"]
    runner = {"kind": "benchmark_model", "binary": str(program), "convert": convert}
    connector = AdbConnector("phone", settings(phone, host, runner=runner))
    measurement = connector.measure(connector.prepare(control_workload()), BRIEF)
    assert measurement.median_ms == pytest.approx(4.1)
    bad = {**runner, "convert": [sys.executable, "-c", "import sys; sys.exit('no such operator')"]}
    with pytest.raises(ModelError, match="no such operator"):
        AdbConnector("phone", settings(phone, host, runner=bad)).prepare(control_workload())


def test_program_that_cannot_run_is_told(phone: Phone, host: Path, tmp_path: Path) -> None:
    program = tmp_path / "onnxruntime_perf_test"
    program.write_text("#!/no/such/interpreter\n")
    runner = {"kind": "onnxruntime_perf_test", "binary": str(program)}
    connector = AdbConnector("phone", settings(phone, host, runner=runner))
    with pytest.raises(DeviceError, match="build it for the phone's processor"):
        connector.prepare(control_workload())


def test_a_program_without_figures_is_told(phone: Phone, host: Path) -> None:
    runner = {"kind": "onnxruntime_perf_test", "binary": shutil.which("echo")}
    connector = AdbConnector("phone", settings(phone, host, runner=runner))
    with pytest.raises(DeviceError, match="printed no latency"):
        connector.prepare(control_workload())


def cat(host: Path, **more: Any) -> dict[str, Any]:
    """A runner that runs any file that is there, and takes 2 ms."""
    return {
        "kind": "command",
        "binary": shutil.which("cat"),
        "command_line": ["sh", "-c", 'test -f "$1" && echo took 2', "sh", "{model}"],
        "pattern": r"took (\d)",
        "unit": "ms",
        **more,
    }


def kept(phone: Phone) -> set[str]:
    return {path.stem for path in (phone.tmp / "device-farm/models").iterdir()}


@pytest.fixture
def emptied(phone: Phone) -> Phone:
    shutil.rmtree(phone.tmp / "device-farm/models", ignore_errors=True)
    return phone


def test_models_not_used_for_longest_are_removed(
    emptied: Phone, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_farm.connectors.adb.models._KEPT", 2)
    connector = AdbConnector("phone", settings(emptied, host, runner=cat(host)))
    connector.prepare(control_workload())
    models = [Workload.from_onnx(_renamed(number)) for number in range(5)]
    for model in models[:4]:
        connector.prepare(model)
        connector.prepare(models[0])  # in use, again and again
    assert kept(emptied) == {model.digest for model in (control_workload(), models[0], models[3])}
    handle = connector.prepare(models[1])
    assert connector.measure(handle, BRIEF).median_ms == 2


def test_a_model_that_vanished_is_brought_again(emptied: Phone, host: Path) -> None:
    connector = AdbConnector("phone", settings(emptied, host, runner=cat(host)))
    handle = connector.prepare(control_workload())
    Path(f"{emptied.folder}{handle.path}").unlink()
    with pytest.raises(DeviceLost, match="vanished from phone"):
        connector.measure(handle, BRIEF)
    assert connector.prepare(control_workload()) == handle
    assert connector.measure(handle, BRIEF).median_ms == 2
    Path(f"{emptied.folder}{handle.path}").unlink()
    assert connector.prepare(control_workload()) == handle
    assert connector.measure(handle, BRIEF).median_ms == 2


def test_a_program_that_vanished_is_brought_again(phone: Phone, connector: AdbConnector) -> None:
    handle = connector.prepare(control_workload())
    shutil.rmtree(phone.tmp / "device-farm/bin")
    with pytest.raises(DeviceLost, match="onnxruntime_perf_test vanished"):
        connector.measure(handle, BRIEF)
    assert connector.measure(handle, BRIEF).n == 6


def test_a_program_built_anew_is_brought_and_told(phone: Phone, host: Path, tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\necho took 3\n")
    own = cat(host, binary=str(program), command_line=["{binary}"])
    connector = AdbConnector("phone", settings(phone, host, runner=own))
    first = connector.measure(connector.prepare(control_workload()), BRIEF)
    program.write_text("#!/bin/sh\necho took 4 and more\n")
    second = connector.measure(connector.prepare(control_workload()), BRIEF)
    assert (first.median_ms, second.median_ms) == (3, 4)
    assert first.environment["runtime"] != second.environment["runtime"]


def test_many_refused_models_are_removed(emptied: Phone, host: Path) -> None:
    """Of 100 names at once the command would be too long."""
    models = emptied.tmp / "device-farm/models"
    models.mkdir(parents=True)
    for number in range(100):
        (models / f"{number:064}.onnx").touch()
    refuses = cat(host, command_line=["sh", "-c", "exit 1", "sh", "{model}"])
    connector = AdbConnector("phone", settings(emptied, host, runner=refuses))
    with pytest.raises(ModelError, match="status 1"):
        connector.prepare(control_workload())
    assert len(kept(emptied)) == 20


@pytest.mark.parametrize(
    "script",
    [
        'echo \'CANNOT LINK EXECUTABLE "x": library "libc++_shared.so" not found\'; exit 1',
        "kill -ILL $$",
    ],
)
def test_a_program_for_another_phone_is_no_fault_of_the_model(
    phone: Phone, host: Path, script: str
) -> None:
    runner = cat(host, command_line=["sh", "-c", script])
    connector = AdbConnector("phone", settings(phone, host, runner=runner))
    with pytest.raises(DeviceError, match="with its libraries in `libraries`") as caught:
        connector.prepare(control_workload())
    assert type(caught.value) is DeviceError


@pytest.mark.parametrize("cores", [[4000], [0, 4000]])
def test_cores_that_a_phone_lacks_are_told_at_probe(
    phone: Phone, host: Path, cores: list[int]
) -> None:
    connector = AdbConnector("phone", settings(phone, host, cores=cores))
    with pytest.raises(DeviceError, match=r"taskset with their mask 1000.* name others"):
        connector.probe()


def test_a_phone_without_taskset_is_told(phone: Phone, host: Path) -> None:
    phone_tool(phone, "taskset", "exit 127")
    connector = AdbConnector("phone", settings(phone, host, cores=[0]))
    with pytest.raises(DeviceError, match="mask 1 fails"):
        connector.prepare(control_workload())
    (phone.folder / "bin/taskset").unlink()
    assert connector.measure(connector.prepare(control_workload()), BRIEF).n == 6


def phone_tool(phone: Phone, name: str, script: str) -> None:
    tool = phone.folder / "bin" / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_an_android_that_is_too_old_is_told(phone: Phone, connector: AdbConnector) -> None:
    phone.set("sdk", "25")
    try:
        with pytest.raises(DeviceError, match="Android 8 or newer"):
            connector.probe()
    finally:
        phone.set("sdk", "34")


def test_the_baseline_is_taken_as_measurements_are(phone: Phone, host: Path) -> None:
    """By a phone that is cool, and in the same mode."""
    more = {"runner": cat(host), "screen": "on", "fixed_performance": True}
    connector = AdbConnector("phone", settings(phone, host, **more))
    (phone.folder / "state/log").unlink(missing_ok=True)
    assert connector.calibrate() == 2
    assert phone.log() == MODE
    phone.set("thermal_status", "2")
    with pytest.raises(Throttled):
        connector.calibrate()


def test_a_mode_that_is_refused_is_told_and_undone(phone: Phone, host: Path) -> None:
    more = {"runner": cat(host), "screen": "on", "fixed_performance": True}
    connector = AdbConnector("phone", settings(phone, host, **more))
    handle = connector.prepare(control_workload())
    cmd = (phone.folder / "bin/cmd").read_text()
    phone_tool(phone, "cmd", "exit 255")
    (phone.folder / "state/log").unlink(missing_ok=True)
    try:
        with pytest.raises(DeviceError, match="`fixed_performance` needs Android 11"):
            connector.measure(handle, BRIEF)
    finally:
        (phone.folder / "bin/cmd").write_text(cmd)
    assert phone.log() == [*MODE[1:3], MODE[-1]]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"address": "phone"}, "address"),
        ({"cores": "big"}, "cores"),
        ({"cores": [-1]}, "greater than or equal to 0"),
        ({"cores": []}, "at least 1"),
    ],
)
def test_unusable_settings_are_refused(
    phone: Phone, host: Path, fault: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        AdbConnector("phone", settings(phone, host, **fault))


def _renamed(number: int) -> bytes:
    """The control model under another name: other bytes, the same latency."""
    import onnx

    proto = onnx.load_model_from_string(control_workload().model)
    proto.graph.name = f"control{number}"
    return proto.SerializeToString()
