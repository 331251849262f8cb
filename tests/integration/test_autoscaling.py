"""Ray's own autoscaler on one host: nodes come by demand and go when they are idle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.ray_head import ROOT, Head, free_ports, ray_head, run

HEAD_NODE = "f" * 51 + "00000"
FAKE_HEAD = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_NODE,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE,
    "RAY_NODE_TYPE_NAME": "ray.head.default",
}
IDLE_S = 20  # longer than the autoscaler is asked for more than it can meet


@pytest.mark.soak
def test_cluster_grows_by_demand_and_shrinks_and_a_phone_host_is_waited_for(tmp_path: Path) -> None:
    """From no worker's node to the two of clusters/local.yaml, and back, also after SIGKILL; more
    than two are asked for each time. Then a device of the run's own has one started for it."""
    (gcs,) = free_ports(1)
    config = yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text())
    config["idle_timeout_minutes"] = IDLE_S / 60
    config["provider"]["gcs_address"] = f"127.0.0.1:{gcs}"
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    with ray_head(f"--autoscaling-config={file}", environment=FAKE_HEAD, cpus=0, gcs=gcs) as head:
        _abandon(head)
        found = json.loads(_driven(head, tmp_path).splitlines()[-1])
    assert found["before"] == 1
    assert found["numbers"] == list(range(60))
    assert len(found["shares"]) == 2  # both nodes' workers took part
    assert found["after"] == 1
    assert sum("nodes for 2 of 9 workers" in text for text in found["said"]) == 1
    waiting, there, coming = found["waited"]
    for words in ("phone:pixel-8 (1)", "device.resources", "offer nothing", "ray start"):
        assert words in waiting
    assert "phone:pixel-8 (1) is there" in there
    assert "no node of the cluster offers CPU (1)" in coming


def _abandon(head: Head) -> None:
    """A job that has asked for nodes is killed when they are there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.scaling_driver", "abandon"],
        cwd=ROOT,
        env={**_driver_on(head).environment, "RAY_ADDRESS": head.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "3\n"
    process.kill()
    process.communicate()


def _driver_on(head: Head) -> Head:
    only_head = {name: head.environment[name] for name in head.environment if name not in FAKE_HEAD}
    return Head(head.address, head.address, head.folder, only_head)


def _driven(head: Head, folder: Path) -> str:
    driver = _driver_on(head)
    words = ("-m", "tests.integration.scaling_driver", str(folder), head.address)
    return run(driver, [sys.executable, *words], ROOT)
