"""A device whose node an autoscaler has yet to start, by what Ray's own scheduler says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from scripted_lessor import Farm

from device_farm import DeviceLost, DeviceSpec, DeviceTimeout, FailurePolicy
from device_farm.farm import lease, patience
from device_farm.farm.autoscaler import will_come
from device_farm.farm.lease import Lessor
from device_farm.farm.pool import Device

V100 = {"CPU": 8, "GPU": 1, "accelerator_type:V100": 1}
CPU, GPU = {"CPU": 1.0, "GPU": 0.0}, {"GPU": 1.0, "accelerator_type:V100": 0.001}
LIMIT = FailurePolicy(start_limit_s=0.2)


def status_of(*pending: dict[str, float], reported: bool = True) -> Any:
    """What GCS tells of a cluster that may start one V100 node, and where this is pending."""
    status = GetClusterStatusReply()
    needed = [{name: each for name, each in bundle.items() if each} for bundle in pending]
    requests = ResourceRequestUtil.group_by_count(map(ResourceRequestUtil.make, needed))
    status.cluster_resource_state.pending_resource_requests.extend(requests)
    if not reported:
        return status
    node = NodeTypeConfig(
        name="v100", min_worker_nodes=0, max_worker_nodes=1, resources=V100, launch_config_hash=""
    )
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs={"v100": node},
            resource_requests=requests,
        )
    )
    status.autoscaling_state.last_seen_cluster_resource_state_version = 1
    status.autoscaling_state.infeasible_resource_requests.extend(reply.infeasible_resource_requests)
    return status


def test_a_node_comes_where_the_autoscaler_has_one() -> None:
    phone = {"phone:pixel-8": 1.0}
    assert will_come(CPU, status_of(CPU))
    assert will_come(GPU, status_of(GPU, phone))
    assert not will_come(phone, status_of(GPU, phone))
    assert not will_come({"CPU": 64.0}, status_of({"CPU": 64.0}))
    assert not will_come(CPU, status_of(GPU))  # its process is placed
    assert not will_come(CPU, status_of(CPU, reported=False))  # nobody looks after nodes
    assert not will_come(CPU, None)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Tells `status` to who asks, and counts the `looks`."""
    found = SimpleNamespace(status=None, looks=0)

    def look() -> Any:
        found.looks += 1
        return found.status

    monkeypatch.setattr(patience, "autoscaler_status", look)
    monkeypatch.setattr(patience, "_LOOK_S", 0.05)
    return found


def lessor_of(
    monkeypatch: pytest.MonkeyPatch,
    needs: dict[str, float],
    started: Any,
    policy: FailurePolicy = LIMIT,
) -> Lessor:
    """Whose devices' processes answer once they are started."""

    def start(device: Device) -> None:
        device.needs = needs
        device.actor = SimpleNamespace(probe=SimpleNamespace(remote=started.wait))

    monkeypatch.setattr(lease, "_start", start)
    monkeypatch.setattr(lease, "ray", SimpleNamespace(kill=lambda *_, **__: None))
    return Lessor(policy)


def test_the_limit_counts_from_when_there_is_a_node(
    monkeypatch: pytest.MonkeyPatch, cluster: SimpleNamespace
) -> None:
    async def test() -> None:
        started, policy = asyncio.Event(), FailurePolicy(start_limit_s=2.0)
        lessor = lessor_of(monkeypatch, CPU, started, policy)
        cluster.status = status_of(CPU)
        device = Device(DeviceSpec(name="cpu", connector="onnxruntime"))
        probe = asyncio.create_task(lessor.probe(device))
        await asyncio.sleep(policy.start_limit_s * 1.5)
        assert not probe.done()
        cluster.status, looks = status_of(), cluster.looks  # it is placed
        while cluster.looks == looks:
            assert not probe.done()
            await asyncio.sleep(0.01)
        started.set()
        assert await probe

    asyncio.run(test())


@pytest.mark.parametrize("pending", [[], [{"CPU": 64.0}]])
def test_a_device_that_no_node_will_hold_is_told(
    monkeypatch: pytest.MonkeyPatch, cluster: SimpleNamespace, pending: list[dict[str, float]]
) -> None:
    """Nor is one waited for whose process is placed, and does not start."""

    async def test() -> None:
        lessor = lessor_of(monkeypatch, {"CPU": 64.0}, asyncio.Event())
        cluster.status = status_of(*pending)
        device = Device(DeviceSpec(name="cpu", connector="onnxruntime"))
        async with asyncio.timeout(5):
            with pytest.raises(DeviceTimeout, match=r"within 0\.2 s"):
                await lessor.probe(device)

    asyncio.run(test())


def test_a_device_is_not_out_while_another_node_comes_for_it(
    cluster: SimpleNamespace, tmp_path: Path
) -> None:
    """Ray fails what is asked of a process that it is to start again, at once."""

    async def test() -> None:
        farm = Farm(tmp_path, ["cpu"], start_limit_s=LIMIT.start_limit_s)
        await farm.until(lambda: farm.state("cpu") == "ready")
        device, is_away = farm.device("cpu"), [1]
        device.needs = CPU

        async def probe() -> Any:
            if is_away:
                raise DeviceLost("its node is gone")
            return device.info

        farm.lessor.probes["cpu"] = probe
        cluster.status = status_of(CPU)
        recovery = asyncio.create_task(farm.roster.recover(device))
        await asyncio.sleep(LIMIT.start_limit_s * 5)
        assert farm.state("cpu") == "lost"
        is_away.clear()
        await recovery
        assert farm.state("cpu") == "ready"
        is_away.append(1)
        cluster.status = status_of({**CPU, "GPU": 2.0})
        await farm.roster.recover(device)
        assert farm.state("cpu") == "parked"

    asyncio.run(test())
