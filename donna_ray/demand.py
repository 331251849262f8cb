"""Asking a cluster for nodes with what a device needs, and waiting for them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray.autoscaler.sdk import request_resources

__all__ = ["demanded"]

_POLL_S = 1.0


@contextmanager
def demanded(nodes: Sequence[Mapping[str, float]], say: Callable[[str], None]) -> Iterator[None]:
    """Have nodes that offer these meanwhile; nothing is asked for where there are none.

    An autoscaler is asked for them, and keeps them; without one a host that joins is waited for.

    Args:
        nodes: of each what it must offer, by Ray's names, such as ``{"phone:pixel-8": 1}``; equal
            ones are one.
        say: told what is missing, if it has to be waited for.
    """
    bundles: list[dict[str, float]] = []
    for each in map(dict, nodes):
        if each and each not in bundles:
            bundles.append(each)
    if not bundles:
        yield
        return
    request_resources(bundles=bundles)
    try:
        for each in bundles:
            _wait(each, say)
        yield
    finally:
        request_resources(bundles=[])


def _wait(resources: Mapping[str, float], say: Callable[[str], None]) -> None:
    if _is_offered(resources):
        return
    missing = ", ".join(f"{name} ({amount:g})" for name, amount in resources.items())
    present = sorted({name for node in _nodes() for name in node if not _is_rays_own(name)})
    say(
        f"  waiting for a node that offers {missing}, as device.resources says; those of the "
        f"cluster offer {', '.join(present) or 'nothing'}. Let a host with it join (`ray start "
        "--resources=…`), or stop and correct device.resources"
    )
    while not _is_offered(resources):
        time.sleep(_POLL_S)
    say(f"  a node with {missing} is there")


def _is_offered(resources: Mapping[str, float]) -> bool:
    needed = resources.items()
    return any(all(node.get(name, 0) >= amount for name, amount in needed) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _is_rays_own(name: str) -> bool:
    return name.startswith("node:") or name in ("memory", "object_store_memory")
