"""Whose fault a failure is, the device's or the model's: the control model tells."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted_lessor import Farm, Measure, away, record, run

from device_farm import (
    Busy,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    Measurement,
    ModelError,
    Throttled,
)
from device_farm.timing.control import control_workload

pytestmark = pytest.mark.usefixtures("no_ray")
CONTROL, BAD = control_workload().model, b"bad"
MODELS = [bytes([number]) for number in range(12)]


def failing(error: Exception, *spared: bytes) -> Measure:
    """A device that fails at all models but those spared."""

    async def measure(model: bytes) -> Measurement:
        if model in spared:
            return record()
        raise error

    return measure


def works(error: Exception) -> Measure:
    """A device that fails at the bad model only."""

    async def measure(model: bytes) -> Measurement:
        await asyncio.sleep(0.01)
        if model == BAD:
            raise error
        return record()

    return measure


async def both_ready(farm: Farm) -> None:
    await farm.until(lambda: farm.state("a") == farm.state("b") == "ready")


FAULTS = [
    ModelError("cannot load the model"),
    DeviceError("mkdir: Permission denied"),
    MemoryError("bad allocation"),
    Busy("disk is full"),
    DeviceTimeout("hangs"),
    DeviceLost("died"),
]


@pytest.mark.parametrize("control_every", [0, 3])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_device_that_fails_everything_spoils_no_model(
    tmp_path: Path, fault: Exception, control_every: int
) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a", "b"], control_every=control_every)
        await both_ready(farm)
        farm.lessor.measures = {"a": failing(fault), "b": works(ModelError("no such operator"))}
        asked = [asyncio.create_task(farm.measure(model)) for model in [*MODELS, BAD]]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert results[:-1] == [2.0] * len(MODELS)
        assert isinstance(results[-1], ModelError)
        assert str(results[-1]) == "no such operator"
        assert farm.state("b") == "ready"
        assert farm.state("a") == "parked"
        assert str(fault) in farm.device("a").status()["message"]

    run(test)


def test_what_parks_a_device_is_named_with_the_remedy_and_ends_when_it_is_mended(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a"])
        await farm.until(lambda: farm.state("a") == "ready")
        farm.lessor.measures["a"] = failing(ModelError("status 1"))
        with pytest.raises(DeviceError, match="no device can measure this now: a: ") as caught:
            await farm.measure()
        assert not isinstance(caught.value, ModelError)
        message = farm.device("a").status()["message"]
        assert "device 'a' must run the control model" in message
        assert "fails (status 1): mend that, and it is tried again" in message
        with pytest.raises(DeviceError):  # its probe passes, the control does not
            await farm.roster.bring_into_service(farm.device("a"))
        assert farm.state("a") == "parked"
        assert farm.lessor.ended == ["a"]  # the next try is of a fresh process
        del farm.lessor.measures["a"]
        assert await farm.measure() == 2.0

    run(test)


def test_a_device_whose_control_is_refused_when_it_joins_blames_no_model(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, control_every=3)
        farm.lessor.measures["a"] = failing(ModelError("status 1"))
        farm.see("a")
        await farm.until(lambda: farm.state("a") == "parked")
        with pytest.raises(DeviceError, match="'a' must run the control") as caught:
            await farm.measure(name="a")
        assert not isinstance(caught.value, ModelError)

    run(test)


@pytest.mark.parametrize("error", [DeviceError("printed nothing"), MemoryError("bad allocation")])
def test_what_blames_no_model_is_tried_on_every_device_that_works(
    tmp_path: Path, error: Exception
) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a", "b"])
        await both_ready(farm)
        farm.lessor.measures["a"] = failing(error, CONTROL)
        assert await asyncio.gather(*map(farm.measure, MODELS)) == [2.0] * len(MODELS)
        farm.lessor.measures["b"] = failing(error, CONTROL)
        with pytest.raises(type(error), match=str(error)):
            await farm.measure(BAD)
        assert farm.state("a") == farm.state("b") == "ready"

    run(test)


def test_what_only_an_absent_device_may_still_do_ends_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, ["a", "b"], start_limit_s=0.5)
        await both_ready(farm)

        async def gone() -> Any:
            await asyncio.sleep(0.01)
            raise DeviceLost("away")

        farm.lessor.probes["b"] = gone
        farm.lessor.measures = {
            "a": failing(DeviceError("printed nothing"), CONTROL),
            "b": failing(DeviceLost("away")),
        }
        with pytest.raises(DeviceError, match="printed nothing"):
            await farm.measure()
        assert farm.state("b") == "parked"

    run(test)


@pytest.mark.parametrize("others", [["b"], []])
def test_what_was_measured_as_its_device_went_is_blamed_for_nothing(
    tmp_path: Path, others: list[str]
) -> None:
    async def test() -> None:
        farm = Farm(tmp_path, others, max_retries=0, start_limit_s=0.3)
        farm.see("a")  # once: only the failure itself can end what nobody else does
        await farm.until(lambda: all(farm.state(name) == "ready" for name in ["a", *others]))

        async def hangs(_model: bytes) -> Measurement:
            farm.lessor.probes["a"] = away([1])
            raise DeviceTimeout("hangs")

        farm.lessor.measures["a"] = hangs
        async with asyncio.timeout(10):
            if others:
                assert await asyncio.gather(*map(farm.measure, MODELS)) == [2.0] * len(MODELS)
            else:
                with pytest.raises(DeviceLost, match="can measure this now: a: away"):
                    await farm.measure()
        assert farm.state("a") == "parked"

    run(test)


def test_a_hot_control_rests_the_device(tmp_path: Path) -> None:
    async def test() -> None:
        farm, hot = Farm(tmp_path, ["a"], delay_s=0.01), [1, 2]
        await farm.until(lambda: farm.state("a") == "ready")

        async def measure(model: bytes) -> Measurement:
            if model == CONTROL and hot:
                hot.pop()
                raise Throttled("hot")
            if model == BAD:
                raise ModelError("no such operator")
            return record()

        farm.lessor.measures["a"] = measure
        with pytest.raises(ModelError, match="no such operator"):
            await farm.measure(BAD)
        assert farm.device("a").failures == {"Throttled": 2, "ModelError": 3}

    run(test)


def test_the_control_of_a_device_that_interleaves_has_its_baseline(tmp_path: Path) -> None:
    async def test() -> None:
        farm, baselines = Farm(tmp_path, ["a"]), list[float | None]()
        await farm.until(lambda: farm.state("a") == "ready")
        farm.device("a").control_baseline_ms = 0.4
        measure = farm.lessor.measure

        async def noting(device: Any, model: bytes, baseline: float | None) -> Measurement:
            baselines.append(baseline)
            return await measure(device, model, baseline)

        farm.lessor.measure = noting  # type: ignore[method-assign]
        farm.lessor.measures["a"] = works(ModelError("no such operator"))
        with pytest.raises(ModelError):
            await farm.measure(BAD)
        assert baselines == [0.4, 0.4]

    run(test)
