"""What a cluster's autoscaler says: whether a node will come for what waits for one."""

from __future__ import annotations

from collections.abc import Mapping

from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.experimental.internal_kv import internal_kv_get_gcs_client

__all__ = ["autoscaler_status", "will_come"]

_LIMIT_S = 10.0


def autoscaler_status() -> GetClusterStatusReply | None:
    """What it last said, and the cluster that it spoke of; None if it is not one that says so.

    Only version 2 does (`RAY_enable_autoscaler_v2=1` at the head's `ray start`, or KubeRay's).

    Raises:
        RayError: The cluster's head does not answer.
    """
    if not is_autoscaler_v2():
        return None
    reply = GetClusterStatusReply()
    reply.ParseFromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=_LIMIT_S))
    return reply


def will_come(needed: Mapping[str, float], status: GetClusterStatusReply | None) -> bool:
    """Whether something that needs this waits for a node, which the autoscaler can provide.

    Args:
        needed: By Ray's names.
        status: See `autoscaler_status`.
    """
    if status is None or not status.autoscaling_state.last_seen_cluster_resource_state_version:
        return False
    cluster, answer = status.cluster_resource_state, status.autoscaling_state
    waiting = [each.request.resources_bundle for each in cluster.pending_resource_requests]
    refused = [each.resources_bundle for each in answer.infeasible_resource_requests]
    bundle = {name: amount for name, amount in needed.items() if amount}
    return any(dict(each) == bundle for each in waiting) and not any(
        dict(each) == bundle for each in refused
    )
