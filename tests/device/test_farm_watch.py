"""What the farm sees of its nodes, without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from ray.exceptions import RayActorError
from scripted_lessor import spec

from device_farm import DeviceError, HostRule
from device_farm.farm import host_watch
from device_farm.farm.device_actor import DeviceActor
from device_farm.farm.host_actor import HostActor, by_resources
from device_farm.farm.host_watch import HostWatch
from device_farm.timing.control import control_workload
from device_farm.workload import workload_digest


def node(name: str, **resources: float) -> dict[str, Any]:
    names = dict.fromkeys(("NodeID", "NodeManagerHostname", "NodeManagerAddress", "NodeName"), name)
    return {**names, "Alive": True, "Resources": resources}


def test_a_host_that_hangs_or_died_blinds_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: Counter[str] = Counter()
    seen: list[str] = []

    def start(node: str) -> Any:
        starts[node] += 1

        async def scan(rules: object) -> Any:
            if node == "hangs":
                await asyncio.sleep(100)
            if node == "died":
                raise RayActorError
            return [spec("phone")], []

        return SimpleNamespace(scan=SimpleNamespace(remote=scan))

    async def test() -> None:
        first_scan = asyncio.Event()
        watch = HostWatch(
            [HostRule(connector="adb")], lambda _, node: seen.append(node), first_scan
        )
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            while len(seen) < 3 or starts["died"] < 3:
                await asyncio.sleep(0.01)
            assert not first_scan.is_set()  # one has not answered yet
            monkeypatch.setattr(host_watch, "_SCAN_LIMIT_S", 0.01)
            nodes.remove(nodes[0])
            await first_scan.wait()
        task.cancel()

    nodes = [node("hangs"), node("died"), node("works")]
    monkeypatch.setattr(host_watch, "_PERIOD_S", 0.02)
    monkeypatch.setattr(host_watch, "_start_host", start)
    monkeypatch.setattr(host_watch, "ray", SimpleNamespace(nodes=lambda: list(nodes)))
    asyncio.run(test())
    assert set(seen) == {"works"}
    assert (starts["hangs"], starts["works"]) == (1, 1)


def test_a_wrong_place_is_told_and_the_other_rules_hold() -> None:
    rules = [HostRule(connector="adb", places=("the shelf",)), HostRule(connector="simulated")]
    found, [fault] = HostActor().scan(rules)
    assert "'adb' devices: ValueError" in fault
    assert {each.connector for each in found} <= {"simulated"}


def test_gpus_of_another_kind_are_not_taken() -> None:
    rules = [HostRule(connector="cuda", settings={"accelerator_type": "V100"})]
    resources = {"GPU": 1.0, "accelerator_type:A100": 1.0}
    assert by_resources(rules, node("n", **resources)) == []
    resources = {"GPU": 1.0, "accelerator_type:V100": 1.0}
    assert [each.name for each in by_resources(rules, node("n", **resources))] == ["n/gpu0"]


class Fuse(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, number: int, place: str) -> None:
        super().__init__(f"fuse {number} is at {place}")


@pytest.mark.parametrize("error", [Fuse(1, "rear"), StopIteration("the rear")])
def test_an_error_that_cannot_travel_is_told_by_its_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    actor = DeviceActor("simulated", "board", {})
    monkeypatch.setattr(type(actor._connector), "probe", fail)
    with pytest.raises(DeviceError, match=rf"{type(error).__name__}: .*rear"):
        actor.probe()


def test_a_measurement_tells_the_shapes_of_its_inputs() -> None:
    """Also where the next model was staged before."""
    proto = onnx.load_model_from_string(control_workload().model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model = proto.SerializeToString()
    actor = DeviceActor("simulated", "board", {})
    for stage in (lambda _: None, actor.stage):
        stage(model)
        record = actor.measure(model, None)
        assert record["environment"]["inputs"] == {"input": [1, 16, 32, 32]}
    assert list(actor._staged) == [workload_digest(model)]
