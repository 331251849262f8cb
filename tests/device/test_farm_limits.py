"""Devices that fail again and again: every job ends, and none for what it is not to blame for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from farms import model_number, results, row, wait_for_state
from local_farm import LocalFarm

from device_farm import (
    AuthRequired,
    Busy,
    DeviceLost,
    DeviceSpec,
    DeviceTimeout,
    FailurePolicy,
    Throttled,
)

Scripted = Callable[..., DeviceSpec]
StartLocal = Callable[..., LocalFarm]
STEADY = FailurePolicy(delay_s=0.2, start_limit_s=30, control_every=0)
BASELINE = ["measure"] * 3
POLICY = FailurePolicy(delay_s=0.01, start_limit_s=30, control_every=2, max_delays=2)


def acts(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.log").read_text().split()


def test_a_control_that_always_fails_ends(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    farm = local(scripted("board", *BASELINE, *["measure", "DeviceLost"] * 20), policy=POLICY)
    with pytest.raises(DeviceLost, match="no device can measure this now: board: board says"):
        farm.measure(model_number(1), "board")
    assert row(farm, "board")["state"] == "parked"
    assert acts(tmp_path, "board").count("DeviceLost") == POLICY.max_requeues + 1


def test_batches_get_smaller_where_speed_drifts(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    """The baseline; two jobs and a control that is off; then one at a time, with a control each."""
    rests = [*BASELINE, *["measure"] * 2, "slow"] + ["measure"] * 2 + ["slow"]
    farm = local(scripted("board", *rests, seconds=0.05), policy=POLICY)
    records = results([farm.submit(model_number(number), "board") for number in range(3)])
    assert [record["median_ms"] for record in records] == [2.0] * 3
    status = row(farm, "board")
    assert (status["failures"], status["done"]) == ({"Throttled": 2}, 3)
    assert status["leases"] == 2 + 1 + 3  # discarded two, then one


def test_a_device_that_drifts_with_every_job_is_quarantined(
    local: StartLocal, scripted: Scripted
) -> None:
    """Its control is well after each rest, and off after each measurement."""
    farm = local(scripted("board", *BASELINE, *["measure", "slow", "measure"] * 20), policy=POLICY)
    with pytest.raises(Throttled, match=r"no device can .* must take 2.000 ms to 5%"):
        farm.measure(model_number(1), "board")
    assert row(farm, "board")["state"] == "quarantined"
    assert row(farm, "board")["leases"] == POLICY.max_delays + 1


def test_what_was_measured_before_a_device_got_hot_is_measured_again(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    farm = local(scripted("board", *BASELINE, "measure", "Throttled", seconds=0.05), policy=POLICY)
    results([farm.submit(model_number(number), "board") for number in range(2)])
    cool = ["measure"]  # the control, before anything else
    assert acts(tmp_path, "board") == [
        *[*BASELINE, "measure", "Throttled"],
        *[*cool, "measure", "measure", *cool],
    ]


def test_losing_many_devices_is_not_the_models_fault(local: StartLocal, scripted: Scripted) -> None:
    policy = FailurePolicy(max_requeues=1, control_every=0)
    names = ["one", "two", "three", "four"]
    farm = local(*(scripted(name, "DeviceLost") for name in names), policy=policy)
    for name in names:
        wait_for_state(farm, name, "ready")
    assert farm.measure(model_number(1), "one").simulated
    assert sum(row(farm, name)["failures"].get("DeviceLost", 0) for name in names) >= 1


def test_a_device_that_comes_back_finds_its_core_taken(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    policy = STEADY
    (tmp_path / "late.away").touch()
    farm = local(
        scripted("early", "Busy", cores=[0]), scripted("late", cores=[0, 1]), policy=policy
    )
    with pytest.raises(Exception, match="early says Busy"):
        farm.measure(model_number(1), "early")
    (tmp_path / "late.away").unlink()
    assert farm.measure(model_number(1), "late").simulated
    with pytest.raises(Exception, match=r"'early' and 'late' share \[0\] of here"):
        farm.measure(model_number(2), "early")
    assert row(farm, "early")["state"] == "parked"


def test_a_parked_device_leaves_its_work_to_its_like(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    farm = local(scripted("one", "AuthRequired"), scripted("two"), policy=STEADY)
    farm.ready()
    records = results([farm.submit(model_number(n), "one") for n in range(6)])
    assert len(records) == 6
    wait_for_state(farm, "one", "parked")
    assert row(farm, "one")["message"] == "one says AuthRequired"
    assert row(farm, "two")["done"] == 6


def test_all_parked_fails_with_what_to_do_until_it_is_done(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    farm = local(scripted("one", "Busy"), scripted("two", "Busy"), policy=STEADY)
    farm.ready()
    away = [tmp_path / "one.away", tmp_path / "two.away"]
    for path in away:
        path.touch()
    asked = [farm.submit(model_number(n), "one") for n in range(4)]
    with pytest.raises(Busy, match=r"one: one says Busy; two: two says Busy"):
        asked[0].result(60)
    for reference in asked[1:]:
        with pytest.raises(Busy, match=r"one: one says Busy; two: two says Busy"):
            reference.result(60)
    with pytest.raises(Busy, match=r"one: close the other program; two: close"):
        farm.measure(model_number(9), "two")
    away[1].unlink()
    assert farm.measure(model_number(9), "one").simulated
    assert [r["state"] for r in farm.status()] == ["parked", "ready"]


def test_a_lost_device_that_stays_away_is_parked(
    local: StartLocal, scripted: Scripted, tmp_path: Path
) -> None:
    farm = local(scripted("board", "DeviceLost"), policy=STEADY)
    farm.ready()
    (tmp_path / "board.away").touch()
    with pytest.raises(Busy, match="close the other program"):
        farm.measure(model_number(9), "board")
    assert row(farm, "board")["state"] == "parked"


def test_devices_on_one_core_are_refused(local: StartLocal, tmp_path: Path) -> None:
    one, other = (
        DeviceSpec(
            name=name,
            connector="scripted",
            settings={"folder": str(tmp_path), "cores": cores},
        )
        for name, cores in (("one", [0, 1]), ("other", [1, 2]))
    )
    with pytest.raises(ValueError, match=r"'one' and 'other' share \[1\] of here"):
        local(one, other, policy=STEADY).ready()


def test_failures_that_last_are_told(local: StartLocal, scripted: Scripted) -> None:
    lasting: list[tuple[str, int, type[Exception]]] = [
        ("DeviceTimeout", 2, DeviceTimeout),
        ("DeviceLost", 4, DeviceLost),
        ("Throttled", 4, Throttled),
        ("AuthRequired", 1, AuthRequired),
        ("bug", 1, ZeroDivisionError),
    ]
    parks = ("Throttled", "AuthRequired")
    control = {act: [] if act in parks else ["measure"] for act, _, _ in lasting}
    acts = [word for act, times, _ in lasting for word in [act] * times + control[act]]
    farm = local(scripted("board", *acts), policy=FailurePolicy(delay_s=0.05, control_every=0))
    farm.ready()
    leases = 0
    for number, (act, times, error) in enumerate(lasting):
        with pytest.raises(error, match=f"board says {act}|a bug"):
            farm.measure(model_number(number), "board")
        leases += times
        assert row(farm, "board")["leases"] == leases
    assert farm.measure(model_number(9), "board").simulated
