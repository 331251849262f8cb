"""What the farm sees of its nodes, without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import onnx
import pytest
from local_farm import LocalActor
from ray.exceptions import RayActorError
from scripted_lessor import spec

from device_farm import DeviceError, HostRule
from device_farm.farm import host_watch
from device_farm.farm.device_actor import DeviceActor
from device_farm.farm.host_actor import HostActor, by_resources
from device_farm.farm.host_watch import HostWatch
from device_farm.farm.pool import DeviceState
from device_farm.farm.roster import Roster
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
            [HostRule(connector="adb", nodes="*")], lambda _, node: seen.append(node), first_scan
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


PHONES = node("phones", **{"CPU": 0.0, "phone:pixel-8": 2.0})
GPUS = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:V100": 1.0, "node:10.0.0.7": 1.0, "memory": 9.0}
WORKER = node("worker", **GPUS, **{"CPU_group_0_2e99": 8.0, "bundle_group_2e99": 1000.0})
HEAD = node("head", **{"CPU": 0.0, "node:__internal_head__": 1.0})


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        (HostRule(connector="cuda"), set()),
        (HostRule(connector="onnxruntime", nodes="*"), set()),
        (HostRule(connector="adb"), {"head", "phones"}),
        (HostRule(connector="adb", nodes="*"), {"head", "phones", "worker"}),
        (HostRule(connector="adb", nodes="w*"), {"worker"}),
    ],
)
def test_a_node_is_asked_only_where_ray_does_not_tell(
    rule: HostRule, asked: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The farm is at home on the head; what has a process of it is never given back."""
    started: set[str] = set()
    found: set[str] = set()

    def start(node: str) -> Any:
        started.add(node)
        return LocalActor(SimpleNamespace(scan=lambda rules: ([], [])))

    async def test() -> None:
        first_scan = asyncio.Event()
        watch = HostWatch([rule], lambda spec, _: found.add(spec.name), first_scan)
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(10):
            await first_scan.wait()
        task.cancel()

    monkeypatch.setattr(host_watch, "_start_host", start)
    monkeypatch.setattr(host_watch, "_home", lambda: "head")
    nodes = [HEAD, PHONES, WORKER]
    monkeypatch.setattr(host_watch, "ray", SimpleNamespace(nodes=lambda: nodes))
    asyncio.run(test())
    told = {"cuda": {"worker/gpu0"}, "onnxruntime": {"worker/cpu"}}
    assert (started, found) == (asked, told.get(rule.connector, set()))


def test_a_device_that_a_host_looks_for_is_tried_when_it_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In between only those that are named: it may be unplugged, and its pause would grow."""
    tried: list[str] = []
    monkeypatch.setattr(Roster, "_try", lambda _, device: tried.append(device.name))
    roster = Roster(Mock(), Mock(), Mock(), Mock())
    found = spec("found")
    for device in (roster.add(spec("named")), roster.add(found, "node")):
        device.state = DeviceState.PARKED
    roster.retry_named()
    assert tried == ["named"]
    roster.report_found(found, "node")
    assert tried == ["named", "found"]


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
