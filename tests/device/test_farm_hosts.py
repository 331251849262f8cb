"""A farm on a cluster of several nodes, of which one goes away with its phones' processes."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from farms import model_number, row, wait_for_state
from phone import Phone, command_settings
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from device_farm import DeviceSpec, FailurePolicy, Farm, FarmConfig, HostRule
from device_farm.connectors.adb.keys import load_signer
from tests.waiting import wait_for

LIMITS = FailurePolicy(delay_s=0.2, control_every=0)


@pytest.fixture
def cluster(one_ray: None) -> Iterator[Cluster]:
    """The Ray that tests share, as the head to which a test adds nodes."""
    head = ray._private.worker.global_worker.node
    cluster = Cluster()
    cluster.head_node, cluster.redis_address = head, head.redis_address
    yield cluster
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


def wait_for_metrics(*names: str) -> None:
    """Until the head, where the farm's actor is, shows them to Prometheus."""
    here = ray.get_runtime_context().get_node_id()
    head = next(node for node in ray.nodes() if node["NodeID"] == here)
    url = f"http://{head['NodeManagerAddress']}:{head['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 300
    missing = set(names)
    while missing:
        assert time.monotonic() < deadline, missing
        with urllib.request.urlopen(url, timeout=60) as answer:
            text = answer.read().decode()
        missing = {name for name in missing if f"ray_device_farm_{name}{{" not in text}
        time.sleep(0.5)


def test_a_host_is_lost_and_another_takes_over(cluster: Cluster, tmp_path: Path) -> None:
    phone = Phone(tmp_path / "SERIAL0").start()
    load_signer(tmp_path / "adbkey")
    settings = command_settings(tmp_path, seconds=0.2)
    rule = HostRule(connector="adb", nodes="phones-*", places=(phone.address,), settings=settings)
    farm = Farm.serve(
        FarmConfig(cache=tmp_path / "cache.sqlite", hosts=(rule,), limits=LIMITS), tmp_path.name
    )
    try:
        first = cluster.add_node(num_cpus=1, node_name="phones-1")
        while not farm.status():
            time.sleep(0.1)
        wait_for_state(farm, phone.address, "ready")
        asked = [farm.submit(model_number(number), phone.address) for number in range(4)]
        wait_for_state(farm, phone.address, "leased")
        cluster.remove_node(first)
        cluster.add_node(num_cpus=1, node_name="phones-2")
        assert [record["median_ms"] for record in ray.get(asked)] == [2.0] * 4
        assert row(farm, phone.address)["failures"]["DeviceLost"] >= 1
        counts = ("leases_total", "failures_total", "queue_length", "busy_share")
        wait_for_metrics(*counts, "wait_seconds_bucket", "lease_seconds_bucket")
    finally:
        farm.close()
        phone.kill()


def idle_ms(node: str) -> int:
    """How long Ray takes a node for idle, by which an autoscaler gives it back."""
    state = get_cluster_resource_state(internal_kv_get_gcs_client())
    [found] = [each for each in state.node_states if each.node_id.hex() == node]
    return int(found.idle_duration_ms)


def test_a_node_without_phones_becomes_idle(cluster: Cluster, tmp_path: Path) -> None:
    """Beside a farm that looks at it, for GPUs and for phones, once a second."""
    idle = cluster.add_node(num_cpus=8)
    busy = cluster.add_node(num_cpus=0, resources={"phone:pixel-8": 1})
    rules = (HostRule(connector="cuda"), HostRule(connector="adb", places=("127.0.0.1:1",)))
    config = FarmConfig(cache=tmp_path / "cache.sqlite", hosts=rules, limits=LIMITS)
    farm = Farm.serve(config, tmp_path.name)
    try:
        wait_for(lambda: idle_ms(busy.node_id) == 0)  # it is looked at, and again in a second
        later = idle_ms(idle.node_id) + 3000
        wait_for(lambda: idle_ms(idle.node_id) >= later)
        assert idle_ms(busy.node_id) == 0
    finally:
        farm.close()


def test_a_device_runs_where_its_resources_are(cluster: Cluster, tmp_path: Path) -> None:
    """Also those that Ray counts by itself; the other nodes have room as well."""
    cluster.add_node(num_cpus=8)
    there = cluster.add_node(num_cpus=16, resources={"board:pi5": 2})
    asked = {"board": {"board:pi5": 1}, "cpu": {"CPU": 12}, "both": {"board:pi5": 1, "CPU": 2}}
    specs = [
        DeviceSpec(name=name, connector="simulated", settings={"model": name}, resources=each)
        for name, each in asked.items()
    ]
    farm = Farm.start(specs, tmp_path / "cache.sqlite", LIMITS)
    try:
        actors = ray._private.state.actors().values()
        devices = [each for each in actors if each["ActorClassName"] == "DeviceActor"]
        alive = [each["Address"]["NodeID"] for each in devices if each["State"] == "ALIVE"]
        assert alive == [there.node_id] * 3
    finally:
        farm.close()
