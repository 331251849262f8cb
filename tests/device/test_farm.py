"""The farm on a real Ray: leases, cache, and every failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from farms import model_number, process_of, row, wait_for_state

from device_farm import (
    DeviceLost,
    DeviceSpec,
    DeviceTimeout,
    FailurePolicy,
    Farm,
    FarmConfig,
    Measurement,
    ModelError,
)
from device_farm.timing.control import control_workload
from tests.conftest import MODULES, start_ray

pytestmark = pytest.mark.usefixtures("one_ray")

StartFarm = Callable[..., Farm]
POLICY = FailurePolicy(delay_s=0.2, control_every=0)
MODEL = control_workload().model
CPU = DeviceSpec(name="cpu", connector="onnxruntime", settings={"threads": 1, "blocks": 4})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartFarm]:
    farms: list[Farm] = []

    def start_farm(*devices: DeviceSpec, policy: FailurePolicy = POLICY) -> Farm:
        farms.append(Farm.start(list(devices), tmp_path / "cache.sqlite", policy))
        return farms[-1]

    yield start_farm
    for farm in farms:
        farm.close()


@pytest.fixture(scope="module")
def cpu_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """For the tests of this module that leave it as it was."""
    start_ray()
    farm = Farm.start([CPU], tmp_path_factory.mktemp("farm") / "cache.sqlite")
    yield farm
    farm.close()


def test_measures_this_cpu_once_for_all_askers(start: StartFarm) -> None:
    farm = start(CPU)
    first, second = ray.get([farm.submit(MODEL, "cpu"), farm.submit(MODEL, "cpu")])
    assert first == second == farm.measure(MODEL, "cpu").to_json()
    assert Measurement.from_json(first).n >= 4 * 15
    status = row(farm, "cpu")
    assert status["model"] == first["device"]
    assert (status["state"], status["leases"], status["done"]) == ("ready", 1, 1)
    assert (status["failures"], status["queue_length"], status["message"]) == ({}, 0, "")
    farm.close()
    farm.close()
    with pytest.raises(ray.exceptions.RayActorError):
        farm.status()
    again = start(CPU)
    assert again.measure(MODEL, "cpu").to_json() == first
    assert row(again, "cpu")["leases"] == 0


def test_a_farm_goes_to_other_tasks(cpu_farm: Farm) -> None:
    @ray.remote(num_cpus=0)
    def ask(farm: Farm) -> float:
        return farm.measure(model_number(1), "cpu").median_ms

    assert ray.get(ask.remote(cpu_farm)) == cpu_farm.measure(model_number(1), "cpu").median_ms


def test_a_killed_device_process_costs_no_measurement(start: StartFarm) -> None:
    """The process is killed with the measurement under way; Ray starts another one."""
    long = {"blocks": 4000, "runs_per_block": 5, "max_seconds": 2}
    farm = start(DeviceSpec(name="cpu", connector="onnxruntime", settings=long))
    asked = farm.submit(MODEL, "cpu")
    wait_for_state(farm, "cpu", "leased")
    os.kill(process_of("DeviceActor.measure"), signal.SIGKILL)
    assert Measurement.from_json(ray.get(asked)).n > 0
    status = row(farm, "cpu")
    assert (status["leases"], status["done"]) == (2, 1)
    assert status["failures"] == {"DeviceLost": 1}


def test_bad_model_is_not_tried_again(cpu_farm: Farm) -> None:
    leases = row(cpu_farm, "cpu")["leases"]
    with pytest.raises(ModelError, match="valid ONNX") as caught:
        cpu_farm.measure(b"not a model", "cpu")
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ModelError):
        ray.get(cpu_farm.submit(b"not a model", "cpu"))
    assert row(cpu_farm, "cpu")["failures"] == {"ModelError": 2}
    assert row(cpu_farm, "cpu")["leases"] == leases + 2
    assert cpu_farm.measure(model_number(2), "cpu").n > 0


def test_a_model_at_which_the_runtime_crashes_costs_no_device(
    start: StartFarm, crashing: bytes
) -> None:
    farm = start(CPU)
    with pytest.raises(ModelError, match="crashes at this one"):
        farm.measure(crashing, "cpu")
    assert farm.measure(model_number(3), "cpu").n > 0
    status = row(farm, "cpu")
    assert (status["state"], status["failures"]) == ("ready", {"ModelError": 1})


def test_failures_that_pass_cost_no_measurement_and_bugs_are_told(
    start: StartFarm, scripted: Callable[..., DeviceSpec], tmp_path: Path
) -> None:
    farm = start(scripted("board", "Throttled", "DeviceLost", "die", "DeviceTimeout"))
    assert farm.measure(MODEL, "board").simulated
    status = row(farm, "board")
    assert status["failures"] == {"Throttled": 1, "DeviceLost": 2, "DeviceTimeout": 1}
    assert (status["state"], status["leases"], status["done"]) == ("ready", 5, 1)
    (tmp_path / "board.script").write_text("bug")
    with pytest.raises(ZeroDivisionError, match="a bug in the connector"):
        farm.measure(model_number(1), "board")


def test_unknown_device_lists_the_known(cpu_farm: Farm) -> None:
    with pytest.raises(ValueError, match="one of cpu, but got 'phone'"):
        cpu_farm.measure(MODEL, "phone")


def test_a_device_that_cannot_be_reached_is_told_at_start(start: StartFarm) -> None:
    absent = DeviceSpec(name="cpu", connector="onnxruntime", settings={"cores": [4095]})
    with pytest.raises(DeviceLost, match="4095"):
        start(absent)
    greedy = DeviceSpec(name="cpu", connector="onnxruntime", settings={"threads": 64})
    with pytest.raises(DeviceTimeout, match="free node"):
        start(greedy, policy=FailurePolicy(start_limit_s=1))


def test_a_farm_may_start_without_the_devices_that_cannot_be_reached(tmp_path: Path) -> None:
    absent = DeviceSpec(name="absent", connector="onnxruntime", settings={"cores": [4095]})
    board = DeviceSpec(name="board", connector="simulated")
    farm, failures = Farm.start_usable([absent, board], tmp_path / "cache.sqlite", POLICY)
    try:
        assert [*failures] == ["absent"]
        assert isinstance(failures["absent"], DeviceLost)
        assert farm.measure(MODEL, "board").simulated
    finally:
        farm.close()


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "at least one"),
        ([CPU, CPU], "cpu is there twice"),
        ([DeviceSpec(name="x", connector="abacus")], "onnxruntime, scripted"),
        ([DeviceSpec(name="x", connector="onnxruntime", settings={"a": 1})], "device 'x': a: "),
    ],
)
def test_unusable_devices_are_refused_at_start(
    start: StartFarm, devices: list[DeviceSpec], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        start(*devices)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[StartFarm]:
    farms: list[Farm] = []

    def serve_farm(*devices: DeviceSpec, policy: FailurePolicy = POLICY) -> Farm:
        config = FarmConfig(cache=tmp_path / "cache.sqlite", devices=devices, limits=policy)
        farms.append(Farm.serve(config, tmp_path.name))
        return farms[-1]

    yield serve_farm
    for farm in farms:
        farm.close()


def test_what_hangs_is_ended(
    serve: StartFarm, scripted: Callable[..., DeviceSpec], tmp_path: Path
) -> None:
    """First the calibration, then a measurement."""
    policy = FailurePolicy(lease_limit_s=5, control_every=2)  # no slow call is taken for a hang
    farm = serve(scripted("board", "hang"), policy=policy)
    assert farm.measure(model_number(1), "board").simulated  # the ask has it tried once more
    assert (tmp_path / "board.log").read_text().split()[:2] == ["hang", "measure"]
    (tmp_path / "board.script").write_text("hang")
    assert farm.measure(model_number(2), "board").simulated
    assert (tmp_path / "board.log").read_text().split().count("hang") == 2
    assert row(farm, "board")["failures"] == {"DeviceTimeout": 2}


def test_a_farm_with_too_many_asks_still_tells_its_state(
    serve: StartFarm, scripted: Callable[..., DeviceSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_farm.farm.farm._CONCURRENT_CALLS", 2)
    farm = serve(scripted("board", seconds=60))
    asked = [farm.submit(model_number(number), "board") for number in range(4)]
    [record] = ray.get(farm._dispatcher.status.remote(), timeout=300)
    assert record["device"] == "board"
    for reference in asked:
        ray.cancel(reference)


SEARCH = """
import ray
from device_farm import Farm
from farms import model_number
ray.init(address={address!r}, log_to_driver=False)
farm = Farm.connect({name!r})
asked = [farm.submit(model_number(number), "board") for number in range(50)]
ray.get(asked[0])
"""


def test_what_a_dead_job_asked_for_is_not_measured(
    serve: StartFarm, scripted: Callable[..., DeviceSpec], tmp_path: Path
) -> None:
    farm = serve(scripted("board", seconds=1.0))
    address = ray.get_runtime_context().gcs_address
    code = SEARCH.format(address=address, name=tmp_path.name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, MODULES))}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=3000, env=environment)
    assert farm.measure(model_number(99), "board").simulated
    assert row(farm, "board")["leases"] < 50
