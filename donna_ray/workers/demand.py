"""Asking a cluster's autoscaler for nodes, as long as the job that asks is alive.

What Ray is asked for (``request_resources``) is one value a cluster, and stays until it is asked
for something else: a job that is killed would keep its nodes for ever, and one that ends take those
of another. So one detached actor asks for all jobs, as much as can be met (``bargain.py``), and
forgets those that it no longer hears of.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from device_farm.farm.autoscaler import autoscaler_status
from donna_ray.run.shared_folder import on_this_node
from donna_ray.workers.bargain import Autoscaler, Bargain, Group

__all__ = ["Demand", "Demands", "demanded", "tell_if_missing"]

SILENCE_S = 60.0
"""After so long without a sign of life a job's demand is forgotten."""

_LOG = logging.getLogger(__name__)
_POLL_S = 1.0
_LOOK_S = 2.0
_NAME, _NAMESPACE = "demands-of-groups", "donna-ray"


class Demands:
    """What each job asks for, and all of it together. Lives in an actor.

    Args:
        autoscaler: told of everything, whenever it changes, or of as much as it can meet.
        silence_s: see ``SILENCE_S``.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        autoscaler: Autoscaler,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bargain = Bargain(autoscaler, clock)
        self._silence_s, self._clock = silence_s, clock
        self._groups: dict[str, list[list[dict[str, float]]]] = {}
        self._heard: dict[str, float] = {}

    def ask(self, asker: str, groups: Sequence[Group]) -> int | None:
        """What it asks for; to be said again and again, and none at the end.

        Returns:
            How many of its groups can be met, or None while that is not known.
        """
        self._heard[asker] = self._clock()
        asked = [[dict(each) for each in group] for group in groups]
        if asked != self._groups.get(asker, []):
            self._groups[asker] = asked
            self._renew()
        return self._bargain.met(asker)

    def tend(self) -> None:
        """To be called every second or two."""
        oldest = self._clock() - self._silence_s
        silent = [asker for asker in self._groups if self._heard[asker] < oldest]
        for asker in silent:
            self._groups[asker] = []
        if silent:
            self._renew()
        self._bargain.look()

    def _renew(self) -> None:
        for asker in [asker for asker, groups in self._groups.items() if not groups]:
            del self._groups[asker], self._heard[asker]
        self._bargain.ask(self._groups)


class _RaysAutoscaler:
    """The cluster's, if it has one; only version 2 says what it refuses."""

    def __init__(self) -> None:
        self._asked_in: int | None = None  # a version of the cluster's state that has what is asked

    def publish(self, bundles: Sequence[Mapping[str, float]]) -> None:
        self._asked_in = None
        request_resources(bundles=[dict(each) for each in bundles])

    def refuses(self) -> bool | None:
        if (status := autoscaler_status()) is None:
            return None
        if self._asked_in is None:
            self._asked_in = status.cluster_resource_state.cluster_resource_state_version
        state = status.autoscaling_state
        if state.last_seen_cluster_resource_state_version <= self._asked_in:
            return None
        return bool(state.infeasible_cluster_resource_constraints)


class _DemandsActor:
    """``Demands`` for the jobs of a cluster; outlives each of them."""

    def __init__(self, silence_s: float) -> None:
        self._demands = Demands(_RaysAutoscaler(), silence_s)
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, asker: str, groups: Sequence[Group]) -> int | None:
        with self._lock:
            return self._demands.ask(asker, groups)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            try:
                with self._lock:
                    self._demands.tend()
            except Exception:  # the cluster's head restarts, say; the next look tries again
                _LOG.warning("cannot ask the autoscaler", exc_info=True)


class Demand:
    """What one job asks an autoscaler for; nothing, without one. To be closed.

    Attributes:
        met: how many of the groups it has said that it can provide nodes for; None while it has
            not, or never does.
    """

    def __init__(self) -> None:
        self.met: int | None = None
        self._asker = uuid.uuid4().hex
        self._asked: list[list[dict[str, float]]] = []
        self._actor: Any = None
        self._closed = threading.Event()

    def ask(self, groups: Sequence[Group]) -> None:
        """Have nodes that these fit on together, from now on; of groups, as many as can be met."""
        asked = [[dict(each) for each in group] for group in groups]
        if asked == self._asked:
            return
        self._asked = asked
        if self._actor is None:
            self._actor = _actor()
            threading.Thread(target=self._beat, daemon=True).start()
        self.met = ray.get(self._actor.ask.remote(self._asker, asked))

    def close(self) -> None:
        """Ask for nothing any more."""
        self._closed.set()
        if self._actor is not None:
            with suppress(ray.exceptions.RayError):  # the cluster is gone
                ray.get(self._actor.ask.remote(self._asker, []))

    def _beat(self) -> None:
        while not self._closed.wait(SILENCE_S / 6):
            with suppress(ray.exceptions.RayError):
                self.met = ray.get(self._actor.ask.remote(self._asker, self._asked))


def _actor() -> Any:
    actor: Any = ray.remote(num_cpus=0)(_DemandsActor)
    named = {"name": _NAME, "namespace": _NAMESPACE, "get_if_exists": True}
    return actor.options(**named, lifetime="detached", **on_this_node()).remote(SILENCE_S)


@contextmanager
def demanded(nodes: Group, say: Callable[[str], None]) -> Iterator[None]:
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
    demand = Demand()
    try:
        demand.ask([[each] for each in bundles])
        for each in bundles:
            _wait(each, say)
        yield
    finally:
        demand.close()


def tell_if_missing(name: str, resources: Mapping[str, float], say: Callable[[str], None]) -> None:
    """Say that no node offers what something needs that is started nevertheless: its process is
    what an autoscaler then starts a node for."""
    if not _is_offered(resources):
        say(
            f"  {name}: no node of the cluster offers {_in_words(resources)}; if an autoscaler can "
            "start one, it is waited for"
        )


def _in_words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({amount:g})" for name, amount in resources.items())


def _wait(resources: Mapping[str, float], say: Callable[[str], None]) -> None:
    if _is_offered(resources):
        return
    missing = _in_words(resources)
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
