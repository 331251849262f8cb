"""The cluster files, against Ray's own schema and KubeRay's fields; nothing is contacted."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.kuberay_fields import RESOURCE, SPECS, faults

CLUSTERS = Path(__file__).parent.parent.parent / "clusters"
RAY_FILES = ("aws-v100", "gcp", "local", "on-premise")
MANIFESTS = {"raycluster": "RayCluster", "rayjob": "RayJob"}
SECRET = re.compile(r"(AKIA|-----BEGIN|secret_?key|password)|token: *[\"']?[0-9a-f]{16}", re.I)


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


def manifest_faults(value: Any) -> list[str]:
    return faults(value, {**RESOURCE, "spec!": SPECS[value["kind"]]})


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_accepts_cluster(name: str) -> None:
    validate_config(prepare_config(read(name)))


def test_ray_refuses_what_is_wrong() -> None:
    config = read("aws-v100")
    with pytest.raises(ValidationError):
        validate_config(prepare_config({**config, "max_worker": 3}))
    config["available_node_types"]["v100_spot"]["min_workers"] = 10
    with pytest.raises(ValueError, match="max_workers"):
        validate_config(prepare_config(config))


def test_clouds_rest_at_a_head_without_gpu_and_scale_to_spot() -> None:
    for name in ("aws-v100", "gcp"):
        config = read(name)
        types = config["available_node_types"]
        assert "GPU" not in types[config["head_node_type"]]["resources"]
        assert all(each.get("min_workers", 0) == 0 for each in types.values())
        assert types["v100"]["max_workers"] == 1
        assert types["v100_spot"]["max_workers"] > 1
        assert types["v100"]["resources"]["accelerator_type:V100"] == 1
    aws = read("aws-v100")["available_node_types"]
    assert "InstanceMarketOptions" in aws["v100_spot"]["node_config"]
    assert "InstanceMarketOptions" not in aws["v100"]["node_config"]
    gcp = read("gcp")["available_node_types"]
    assert {"preemptible": True} in gcp["v100_spot"]["node_config"]["scheduling"]
    assert {"preemptible": True} not in gcp["v100"]["node_config"]["scheduling"]


@pytest.mark.parametrize("name", ["aws-v100", "gcp", "on-premise"])
def test_heads_listen_on_the_loopback_and_ask_for_the_token(name: str) -> None:
    config = read(name)
    for kind in ("head", "worker"):
        command = " ".join(config[f"{kind}_start_ray_commands"])
        assert "RAY_AUTH_MODE=token" in command
        assert "0.0.0.0" not in command
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", sorted(CLUSTERS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_file_holds_a_secret(path: Path) -> None:
    assert SECRET.search(path.read_text().replace("secretKeyRef", "")) is None


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_fields_of_kuberay(name: str) -> None:
    manifest = read(f"kuberay/{name}")
    assert manifest["kind"] == MANIFESTS[name]
    assert manifest_faults(manifest) == []
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert spec["enableInTreeAutoscaling"] is True
    assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])


def test_faults_of_a_manifest_are_found() -> None:
    manifest = read("kuberay/raycluster")
    for change, words in (
        (lambda spec: spec.update(enableAutoscaling=True), "enableAutoscaling is no field"),
        (lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"), "maxReplicas must be"),
        (lambda spec: spec["headGroupSpec"].update(rayStartParams={"num-cpus": 0}), "must be str"),
        (lambda spec: spec["autoscalerOptions"].update(upscalingMode="Fast"), "must be one of"),
    ):
        broken = copy.deepcopy(manifest)
        change(broken["spec"])
        assert any(words in fault for fault in manifest_faults(broken)), words


def test_every_pod_has_the_token_from_its_secret() -> None:
    pods = []
    for name in MANIFESTS:
        spec = read(f"kuberay/{name}")["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        pods += [group["template"] for group in groups]
        pods += [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    for pod in pods:
        variables = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]


def test_custom_resources_of_phones_are_json_for_ray_start() -> None:
    groups = read("kuberay/raycluster")["spec"]["workerGroupSpecs"]
    (text,) = shlex.split(groups[1]["rayStartParams"]["resources"])
    assert yaml.safe_load(text) == {"phone:pixel-8": 1}
