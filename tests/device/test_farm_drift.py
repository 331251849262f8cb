"""Devices whose speed drifts, and devices of one model that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from farms import model_number, results, row
from local_farm import LocalFarm

from device_farm import DeviceSpec, FailurePolicy, Throttled

StartDrifting = Callable[..., LocalFarm]


@pytest.fixture
def start(local: Callable[..., LocalFarm]) -> StartDrifting:
    """Starts simulated devices without noise, and waits for them."""

    def start_farm(policy: FailurePolicy, **devices: dict[str, Any]) -> LocalFarm:
        farm = local(
            *(
                DeviceSpec(name=name, connector="simulated", settings={"noise_percent": 0, **own})
                for name, own in devices.items()
            ),
            policy=policy,
        )
        farm.ready()
        return farm

    return start_farm


def test_measurements_of_a_drifted_device_are_done_again(start: StartDrifting) -> None:
    policy = FailurePolicy(delay_s=0.01, control_every=2, max_delays=10_000)
    farm = start(policy, board={"drift_percent": 20, "drift_period_s": 10.0})
    models = [model_number(number) for number in range(12)]
    records = results([farm.submit(model, "board") for model in models])
    status = row(farm, "board")
    steady = start(policy, board={}).measure(models[0], "board").median_ms  # all cost the same
    assert [record["median_ms"] for record in records] == pytest.approx([steady] * 12, rel=0.08)
    assert status["failures"]["Throttled"] > 0
    assert status["leases"] > status["done"] == 12


def test_a_device_that_stays_drifted_is_quarantined(start: StartDrifting) -> None:
    policy = FailurePolicy(delay_s=0.01, control_every=3, max_delays=1)
    farm = start(policy, board={"drift_percent": 50, "drift_period_s": 20.0})
    with pytest.raises(Throttled, match=r"no device can .* ms to 5%, but takes"):
        results([farm.submit(model_number(number), "board") for number in range(60)])
    assert row(farm, "board")["state"] == "quarantined"
    assert "let the device rest" in row(farm, "board")["message"]


def test_a_device_that_is_slower_than_its_like_does_not_serve(start: StartDrifting) -> None:
    start(FailurePolicy(), first={}).close()  # its control is the one to compare with
    farm = start(FailurePolicy(), like={"speed": 0.98}, other={"model": "b", "speed": 0.8})
    assert [each["state"] for each in farm.status()] == ["ready", "ready"]
    assert row(farm, "like")["differs_percent"] == pytest.approx(2.04, abs=0.01)
    with pytest.raises(Throttled, match=r"equally fast to 5%.*'slow' takes .*\(\+25.0%\)"):
        start(FailurePolicy(), slow={"speed": 0.8})
