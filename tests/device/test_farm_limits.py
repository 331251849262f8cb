"""Devices that fail again and again: every job ends, and none for what it is not to blame for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from farms import model_number, row, wait_for_state

from device_farm import DeviceLost, DeviceSpec, FailurePolicy, Farm, FarmConfig, Throttled

pytestmark = pytest.mark.usefixtures("ray_session")

Scripted = Callable[..., DeviceSpec]
BASELINE = ["measure"] * 3
POLICY = FailurePolicy(delay_s=0.01, start_limit_s=30, control_every=2, max_delays=2)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Farm]]:
    farms: list[Farm] = []

    def serve_farm(*devices: DeviceSpec, policy: FailurePolicy = POLICY) -> Farm:
        config = FarmConfig(cache=tmp_path / "cache.sqlite", devices=devices, limits=policy)
        farms.append(Farm.serve(config, tmp_path.name))
        return farms[-1]

    yield serve_farm
    for farm in farms:
        farm.close()


def acts(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.log").read_text().split()


def test_a_control_that_always_fails_ends(
    serve: Callable[..., Farm], scripted: Scripted, tmp_path: Path
) -> None:
    farm = serve(scripted("board", *BASELINE, *["measure", "DeviceLost"] * 20))
    with pytest.raises(DeviceLost, match="no device can measure this now: board: board says"):
        farm.measure(model_number(1), "board")
    assert row(farm, "board")["state"] == "parked"
    assert acts(tmp_path, "board").count("DeviceLost") == POLICY.max_requeues + 1


def test_batches_get_smaller_where_speed_drifts(
    serve: Callable[..., Farm], scripted: Scripted, tmp_path: Path
) -> None:
    """The baseline; two jobs and a control that is off; then one at a time, with a control each."""
    rests = [*BASELINE, *["measure"] * 2, "slow"] + ["measure"] * 2 + ["slow"]
    farm = serve(scripted("board", *rests, seconds=0.2))
    records = ray.get([farm.submit(model_number(number), "board") for number in range(3)])
    assert [record["median_ms"] for record in records] == [2.0] * 3
    status = row(farm, "board")
    assert (status["failures"], status["done"]) == ({"Throttled": 2}, 3)
    assert status["leases"] == 2 + 1 + 3  # discarded two, then one


def test_a_device_that_drifts_with_every_job_is_quarantined(
    serve: Callable[..., Farm], scripted: Scripted
) -> None:
    """Its control is well after each rest, and off after each measurement."""
    farm = serve(scripted("board", *BASELINE, *["measure", "slow", "measure"] * 20))
    with pytest.raises(Throttled, match=r"no device can .* must take 2.000 ms to 5%"):
        farm.measure(model_number(1), "board")
    assert row(farm, "board")["state"] == "quarantined"
    assert row(farm, "board")["leases"] == POLICY.max_delays + 1


def test_what_was_measured_before_a_device_got_hot_is_measured_again(
    serve: Callable[..., Farm], scripted: Scripted, tmp_path: Path
) -> None:
    farm = serve(scripted("board", *BASELINE, "measure", "Throttled"))
    ray.get([farm.submit(model_number(number), "board") for number in range(2)])
    cool = ["measure"]  # the control, before anything else
    assert acts(tmp_path, "board") == [
        *[*BASELINE, "measure", "Throttled"],
        *[*cool, "measure", "measure", *cool],
    ]


def test_losing_many_devices_is_not_the_models_fault(
    serve: Callable[..., Farm], scripted: Scripted
) -> None:
    policy = FailurePolicy(max_requeues=1, control_every=0)
    names = ["one", "two", "three", "four"]
    farm = serve(*(scripted(name, "DeviceLost") for name in names), policy=policy)
    for name in names:
        wait_for_state(farm, name, "ready")
    assert farm.measure(model_number(1), "one").simulated
    assert sum(row(farm, name)["failures"].get("DeviceLost", 0) for name in names) >= 1


def test_a_device_that_comes_back_finds_its_core_taken(
    serve: Callable[..., Farm], scripted: Scripted, tmp_path: Path
) -> None:
    policy = FailurePolicy(control_every=0)
    (tmp_path / "late.away").touch()
    farm = serve(
        scripted("early", "Busy", cores=[0]), scripted("late", cores=[0, 1]), policy=policy
    )
    with pytest.raises(Exception, match="early says Busy"):
        farm.measure(model_number(1), "early")
    (tmp_path / "late.away").unlink()
    assert farm.measure(model_number(1), "late").simulated
    with pytest.raises(Exception, match=r"'early' and 'late' share \[0\] of here"):
        farm.measure(model_number(2), "early")
    assert row(farm, "early")["state"] == "parked"


def test_a_calibration_that_hangs_is_ended(
    serve: Callable[..., Farm], scripted: Scripted, tmp_path: Path
) -> None:
    policy = FailurePolicy(lease_limit_s=1, control_every=2)
    farm = serve(scripted("board", "hang"), policy=policy)
    assert farm.measure(model_number(1), "board").simulated  # the ask has it tried once more
    assert acts(tmp_path, "board")[:2] == ["hang", "measure"]


def test_a_farm_with_too_many_asks_still_tells_its_state(
    serve: Callable[..., Farm], scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_farm.farm.farm._CONCURRENT_CALLS", 2)
    farm = serve(scripted("board", seconds=60), policy=FailurePolicy(control_every=0))
    asked = [farm.submit(model_number(number), "board") for number in range(4)]
    [record] = ray.get(farm._dispatcher.status.remote(), timeout=30)
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
    serve: Callable[..., Farm], scripted: Scripted, tmp_path: Path
) -> None:
    policy = FailurePolicy(control_every=0)
    farm = serve(scripted("board", seconds=0.2), policy=policy)
    address = ray.get_runtime_context().gcs_address
    code = SEARCH.format(address=address, name=tmp_path.name)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert farm.measure(model_number(99), "board").simulated
    assert row(farm, "board")["leases"] < 50
