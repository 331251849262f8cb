"""Ray's own scheduler of nodes, on the node types of a shipped cluster file; no cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _generate_available_node_types_from_ray_cr_spec,
)
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint

CLUSTERS = Path(__file__).parents[3] / "clusters"


def _node_types(name: str) -> dict[str, Any]:
    """As the autoscaler has them, but the head's."""
    read = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    if "spec" in read:
        spec = read["spec"].get("rayClusterSpec", read["spec"])
        types, head = _generate_available_node_types_from_ray_cr_spec(spec), "headgroup"
    else:
        types, head = read["available_node_types"], read["head_node_type"]
    return {kind: each for kind, each in types.items() if kind != head}


class ShippedAutoscaler:
    """What version 2 of the autoscaler would do, with the node types of ``clusters/<name>.yaml``.

    Attributes:
        types: of nodes; a test may change them.
        published: all that was asked for, from the first to the last.
    """

    def __init__(self, name: str) -> None:
        self.types = _node_types(name)
        self.published: list[list[dict[str, float]]] = []

    def publish(self, bundles: Sequence[Mapping[str, float]]) -> None:
        self.published.append([dict(each) for each in bundles])

    def refuses(self) -> bool | None:
        return bool(self._reply().infeasible_cluster_resource_constraints)

    def launched(self) -> dict[str, int]:
        """The nodes of each type that it would start now."""
        return {each.instance_type: each.count for each in self._reply().to_launch}

    def _reply(self) -> Any:
        types = {
            kind: NodeTypeConfig(
                name=kind,
                min_worker_nodes=0,
                max_worker_nodes=each["max_workers"],
                resources=each["resources"],
                launch_config_hash="",
            )
            for kind, each in self.types.items()
        }
        asked = [ResourceRequestUtil.make(each) for each in self.published[-1]]
        constraint = ClusterResourceConstraint(
            resource_requests=ResourceRequestUtil.group_by_count(asked)
        )
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            cluster_resource_constraints=[constraint],
        )
        return ResourceDemandScheduler().schedule(request)
