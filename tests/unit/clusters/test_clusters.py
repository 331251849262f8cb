"""The cluster files, against Ray's own schema and KubeRay's fields; nothing is contacted."""

from __future__ import annotations

import copy
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _generate_available_node_types_from_ray_cr_spec,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.unit.clusters.kuberay_fields import RESOURCE, SPECS, faults

ROOT = Path(__file__).parents[3]
CLUSTERS = ROOT / "clusters"
CONSTRAINTS = ROOT / "constraints.txt"
DOCUMENT = ROOT / "docs" / "clusters.md"
RAY_FILES = ("aws-v100", "gcp", "local", "on-premise")
MANIFESTS = {"raycluster": "RayCluster", "rayjob": "RayJob"}
SECRET = re.compile(r"(AKIA|-----BEGIN|secret_?key|password)|token: *[\"']?[0-9a-f]{16}", re.I)


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


def pod_of(cluster: Any) -> Any:
    """The pod of a cluster's head, of its specification."""
    return cluster["headGroupSpec"]["template"]["spec"]


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
        (lambda spec: spec["autoscalerOptions"].update(version=2), "must be one of"),
        (lambda spec: spec["authOptions"].update(secret="x"), "secret is no field"),
        (lambda spec: pod_of(spec).update(serviceAccount="x"), "serviceAccount is no field"),
        (lambda spec: pod_of(spec)["containers"][0].update(envFrom=[{"secret": {}}]), "no field"),
    ):
        broken = copy.deepcopy(manifest)
        change(broken["spec"])
        assert any(words in fault for fault in manifest_faults(broken)), words


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_kuberays_token_and_an_account_for_the_storage(name: str) -> None:
    spec = read(f"kuberay/{name}")["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["authOptions"] == {"mode": "token"}  # for the submitter and the autoscaler, too
    assert cluster["autoscalerOptions"]["version"] == "v2"
    trains = [each for each in cluster["workerGroupSpecs"] if each["groupName"] != "phones"]
    for group in (cluster["headGroupSpec"], *trains):
        assert group["template"]["spec"]["serviceAccountName"]
    assert "1.5.1" in (CLUSTERS / f"kuberay/{name}.yaml").read_text()


def test_every_head_gives_a_stopped_job_a_minute() -> None:
    for name in ("aws-v100", "gcp", "on-premise"):
        starts = [line for line in read(name)["head_start_ray_commands"] if "--head" in line]
        assert len(starts) == 1
        assert "RAY_JOB_STOP_WAIT_TIME_S=60" in starts[0].partition("ray start")[0]
    above, _, _ = (CLUSTERS / "local.yaml").read_text().partition("ray start --head")
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in above
    for name in MANIFESTS:
        spec = read(f"kuberay/{name}")["spec"]
        head = pod_of(spec.get("rayClusterSpec", spec))["containers"][0]
        assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "60"} in head["env"]


def test_workers_of_clouds_may_use_the_storage_and_only_the_head_starts_machines() -> None:
    for name in ("v100_spot", "v100"):
        accounts = read("gcp")["available_node_types"][name]["node_config"]["serviceAccounts"]
        assert accounts[0]["email"].startswith("ray-autoscaler-sa-v1@")
        assert accounts[0]["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]
    types = read("aws-v100")["available_node_types"]
    profiles = {
        name: each["node_config"]["IamInstanceProfile"]["Name"] for name, each in types.items()
    }
    assert profiles["v100"] == profiles["v100_spot"] != profiles["head"]
    assert "iam:PassRole" in (CLUSTERS / "aws-v100.yaml").read_text()


def test_nodes_install_pinned_versions() -> None:
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    image = (CLUSTERS / "Dockerfile").read_text()
    script = (CLUSTERS / "install.sh").read_text()
    for text in (image, script):
        for package in ("torch", "torchvision"):
            assert re.findall(rf"\b{package}==([\d.]+)", text) == [pinned[package]]
    assert "/whl/cu126" in image
    assert " --require-hashes -r /home/ray/donna-ray/clusters/requirements.txt" in image
    for name, index in (("aws-v100", "cu126"), ("gcp", "cu126"), ("on-premise", "$(nvidia-smi")):
        assert f"install.sh {index}" in read(name)["setup_commands"][0]


def test_requirements_of_the_image_are_complete_and_have_hashes() -> None:
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    lines = (CLUSTERS / "requirements.txt").read_text().splitlines()[1:]
    found = {}
    for line in lines:
        name, version, _ = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line).groups()
        found[name] = version
        assert pinned.get(name, version) == version
    waiting, seen = [("donna-ray", extra) for extra in ("", "usb", "s3", "gs")], set()
    while waiting:
        name, extra = waiting.pop()
        for text in requires(name) or []:
            requirement = Requirement(text)
            own = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            if re.fullmatch(r"torch|torchvision|triton|cuda-.*|nvidia-(?!ml-py).*", own):
                continue
            assert own in found, f"{own}, of {name}: run scripts/hash_requirements.py"
            assert requirement.specifier.contains(found[own], prereleases=True)
            for more in ("", *requirement.extras):
                if (own, more) not in seen and _is_installed(own):
                    seen.add((own, more))
                    waiting.append((own, more))


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_fixed_hosts_are_all_started_also_a_fourth() -> None:
    config = read("on-premise")
    config["provider"]["worker_ips"].append("10.0.0.22")
    prepared = prepare_config(config)
    validate_config(prepared)
    (node,) = prepared["available_node_types"].values()
    assert prepared["max_workers"] == node["min_workers"] == node["max_workers"] == 4


def test_commands_of_the_document_carry_the_token_and_what_a_run_needs() -> None:
    text = DOCUMENT.read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("    ")]
    for words in ("ray job submit", "ray start --address", "device-farm serve"):
        found = [line for line in commands if words in line]
        assert found
        assert all(f"RAY_AUTH_MODE=token {words}" in line for line in found)
    assert text.index("ray get-auth-token --generate") < text.index("ray up clusters/")
    submitted = [line for line in commands if "submit.sh" in line or "ray job submit" in line]
    assert submitted
    assert all("--set cluster.storage=" in line for line in submitted)
    v100 = [line for line in submitted if "s3://" in line]
    for setting in ("workers=8", "gpus_per_worker=1", "cpus_per_worker=8"):
        assert all(f"--set cluster.{setting}" in line for line in v100)


@pytest.mark.parametrize("name", MANIFESTS)
def test_rays_autoscaler_knows_what_pods_offer_before_there_is_one(name: str) -> None:
    """As it reads the groups: what a node finds at its start comes too late for the first."""
    spec = read(f"kuberay/{name}")["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    types = _generate_available_node_types_from_ray_cr_spec(cluster)
    offered = {name: each["resources"] for name, each in types.items()}
    assert offered["v100"] | {"memory": 0} == {
        "CPU": 8,
        "GPU": 1,
        "accelerator_type:V100": 1,
        "memory": 0,
    }
    assert "phones" not in offered or offered["phones"]["phone:pixel-8"] == 1
