"""The folder and the code that all processes of a run see: the run folder, or one at a URL.

All nodes of a cluster must see the run folder, on a filesystem that they share. Where they share
none, `cluster.storage` names a URL: records of blocks and networks are there, and a copy of the run
folder, from which a command on another host goes on.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import device_farm
from donna_ray.errors import DonnaError
from donna_ray.storage.files import Storage

__all__ = ["MARK", "SharedFolder", "check_nodes", "on_this_node"]

MARK = ".seen"
"""A file that is there while a command works on the run; of one that was killed, until the next."""

_PATIENCE_S = 60.0
_PACKAGES = [Path(__file__).parents[1], Path(device_farm.__path__[0])]


class SharedFolder:
    """That folder, and whether a node sees it and has this code. Picklable.

    Args:
        location: of ``ClusterConfig.location_of``.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = location
        self._storage = Storage(location)
        self._own, self._code = uuid.uuid4().bytes, _code()

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Keep a file there by whose content nodes tell that they see this folder, no other one."""
        self._storage.write(MARK, self._own)
        try:
            yield
        finally:
            self._storage.remove(MARK)

    def check(self) -> None:
        """Refuse a node that does not see the folder, or has other code; called on that node.

        Raises:
            DonnaError: with the node, the folder and the remedy.
        """
        node = f"node {ray.util.get_node_ip_address()} (host {os.uname().nodename})"
        try:
            is_seen = self._storage.read(MARK) == self._own
        except DonnaError as error:  # credentials, say, which other nodes have
            raise DonnaError(f"On {node}: {error}") from error
        if not is_seen:
            raise DonnaError(
                f"All nodes of the cluster must see the run's folder {self._storage.url}, but "
                f"{node} does not. Put the run folder (--out, or cluster.storage) on a filesystem "
                "that all nodes mount, or set cluster.storage to a URL such as s3://BUCKET/FOLDER."
            )
        if _code() != self._code:
            raise DonnaError(
                f"All nodes of the cluster must have the same donna-ray, but {node} has another "
                f"one, in {_PACKAGES[0]}. Install that of the command there, as `ray up` does."
            )


@cache
def _code() -> str:
    """Digest of this process's packages."""
    found = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted(package.rglob("*.py")):
            found.update(f"{path.relative_to(package.parent)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def check_nodes(shared: SharedFolder) -> None:
    """``SharedFolder.check`` on the other nodes where workers may come to be.

    A node that is lost meanwhile, or does not answer for a minute, is passed over: workers check
    again when they begin. Hosts of phones, which offer no CPUs, need not see the folder.

    Raises:
        DonnaError: one does not see the folder.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")
    ]
    asked = [_check.options(**_on(node)).remote(shared) for node in nodes]
    answered, _ = ray.wait(asked, num_returns=len(asked) or 1, timeout=_PATIENCE_S)
    for error in _errors_of(answered):
        raise error


def _errors_of(references: Sequence[Any]) -> Iterator[DonnaError]:
    for reference in references:
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, DonnaError):
                raise
            yield error.cause
        except ray.exceptions.RayError:
            continue  # the node is gone


def on_this_node() -> dict[str, Any]:
    """Options that place what coordinates on this node, whose loss ends the run in any case."""
    return _on(ray.get_runtime_context().get_node_id())


def _on(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


@ray.remote(num_cpus=0, max_retries=0)
def _check(shared: SharedFolder) -> None:
    shared.check()
