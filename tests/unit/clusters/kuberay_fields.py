"""The fields of KubeRay's custom resources, as far as a manifest of ours may have them.

Source: ray-project/kuberay, ray-operator/apis/ray/v1/raycluster_types.go at commit 3275ee09 and
rayjob_types.go at f6ef3f7b (KubeRay 1.4), autoscalerOptions.version of docs/reference/api.md at
0057210e, and authOptions as of KubeRay 1.5.1. ``POD`` stands for Kubernetes' PodTemplateSpec, of
which the names of core/v1 that we use are listed. A name that ends in `!` must be there.
"""

from __future__ import annotations

from typing import Any

STRINGS = {"*": str}
KEY = {"name!": str, "key!": str, "optional": bool}
ENVIRONMENT = [
    {
        "name!": str,
        "value": str,
        "valueFrom": {
            "secretKeyRef": KEY,
            "configMapKeyRef": KEY,
            "fieldRef": {"fieldPath!": str},
        },
    }
]
REFERENCE = {"name!": str, "optional": bool}
ENVIRONMENT_FROM = [{"prefix": str, "secretRef": REFERENCE, "configMapRef": REFERENCE}]
RESOURCES = {"requests": STRINGS, "limits": STRINGS}
CONTAINER = {
    "name!": str,
    "image!": str,
    "env": ENVIRONMENT,
    "envFrom": ENVIRONMENT_FROM,
    "securityContext": {"privileged": bool},
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
    "resources": RESOURCES,
}
POD = {
    "metadata": {"labels": STRINGS},
    "spec!": {
        "serviceAccountName": str,
        "automountServiceAccountToken": bool,
        "securityContext": {
            "runAsNonRoot": bool,
            "runAsUser": int,
            "supplementalGroups": [int],
            "fsGroup": int,
        },
        "containers!": [CONTAINER],
        "nodeSelector": STRINGS,
        "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
        "restartPolicy": str,
        "volumes": [
            {
                "name!": str,
                "hostPath": {"path!": str},
                "configMap": {"name!": str},
                "secret": {"secretName!": str, "optional": bool, "defaultMode": int},
            },
        ],
    },
}
CLUSTER_SPEC = {
    "rayVersion": str,
    "authOptions": {"mode": ("disabled", "token")},
    "enableInTreeAutoscaling": bool,
    "suspend": bool,
    "autoscalerOptions": {
        "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "idleTimeoutSeconds": int,
        "version": ("v1", "v2"),
        "image": str,
        "imagePullPolicy": str,
        "resources": RESOURCES,
        "env": ENVIRONMENT,
        "envFrom": ENVIRONMENT_FROM,
    },
    "headGroupSpec!": {
        "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
        "enableIngress": bool,
        "rayStartParams!": STRINGS,
        "template!": POD,
    },
    "workerGroupSpecs": [
        {
            "groupName!": str,
            "replicas": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "idleTimeoutSeconds": int,
            "numOfHosts": int,
            "rayStartParams!": STRINGS,
            "template!": POD,
        }
    ],
}
JOB_SPEC = {
    "entrypoint!": str,  # optional there, for InteractiveMode
    "runtimeEnvYAML": str,
    "rayClusterSpec": CLUSTER_SPEC,
    "clusterSelector": STRINGS,
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode"),
    "submitterPodTemplate": POD,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "entrypointResources": str,
}
RESOURCE = {
    "apiVersion!": ("ray.io/v1",),
    "kind!": ("RayCluster", "RayJob"),
    "metadata!": {"name!": str, "labels": STRINGS},
}
SPECS = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}


def faults(value: Any, fields: Any, where: str = "") -> list[str]:
    """What of a value is not as the fields say."""
    if isinstance(fields, tuple):
        return [] if value in fields else [f"{where} must be one of {fields}, but is {value!r}"]
    if isinstance(fields, type):
        fits = isinstance(value, fields) and not (fields is int and isinstance(value, bool))
        return [] if fits else [f"{where} must be {fields.__name__}, but is {value!r}"]
    if isinstance(fields, list):
        if not isinstance(value, list):
            return [f"{where} must be a list, but is {value!r}"]
        each = (faults(item, fields[0], f"{where}[{n}]") for n, item in enumerate(value))
        return [fault for found in each for fault in found]
    if not isinstance(value, dict):
        return [f"{where} must be a mapping, but is {value!r}"]
    return _faults_of_mapping(value, fields, where)


def _faults_of_mapping(value: dict[str, Any], fields: dict[str, Any], where: str) -> list[str]:
    known = {name.removesuffix("!"): kind for name, kind in fields.items()}
    missing = {name[:-1] for name in fields if name.endswith("!")} - value.keys()
    found = [f"{where}.{name} must be there" for name in sorted(missing)]
    for name, item in value.items():
        kind = known.get(name, known.get("*"))
        if kind is None:
            found.append(f"{where}.{name} is no field")
        else:
            found += faults(item, kind, f"{where}.{name}")
    return found
