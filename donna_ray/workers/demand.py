"""Asking a cluster's autoscaler for nodes, as long as the job that asks is alive.

What Ray is asked for (``request_resources``) is one value a cluster, and stays until it is asked
for something else: a job that is killed would keep its nodes for ever, and one that ends take those
of another. So one detached actor asks for all jobs, and forgets those that it no longer hears of.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from donna_ray.run.shared_folder import on_this_node

__all__ = ["Demand", "Demands", "demanded"]

SILENCE_S = 60.0
"""After so long without a sign of life a job's demand is forgotten."""

_POLL_S = 1.0
_NAME, _NAMESPACE = "demands", "donna-ray"

Bundles = Sequence[Mapping[str, float]]


class Demands:
    """What each job asks for, and all of it together. Lives in an actor.

    Args:
        publish: called with all bundles, whenever they change.
        silence_s: see ``SILENCE_S``.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        publish: Callable[[list[dict[str, float]]], None],
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publish, self._silence_s, self._clock = publish, silence_s, clock
        self._bundles: dict[str, list[dict[str, float]]] = {}
        self._heard: dict[str, float] = {}

    def ask(self, asker: str, bundles: Bundles) -> None:
        """What it asks for, by Ray's names; to be said again and again, and none at the end."""
        self._heard[asker] = self._clock()
        asked = [dict(each) for each in bundles]
        if asked != self._bundles.get(asker, []):
            self._bundles[asker] = asked
            self._renew()

    def forget_silent(self) -> None:
        """To be called now and then."""
        oldest = self._clock() - self._silence_s
        silent = [asker for asker in self._bundles if self._heard[asker] < oldest]
        for asker in silent:
            self._bundles[asker] = []
        if silent:
            self._renew()

    def _renew(self) -> None:
        for asker in [asker for asker, bundles in self._bundles.items() if not bundles]:
            del self._bundles[asker], self._heard[asker]
        self._publish([each for bundles in self._bundles.values() for each in bundles])


class _DemandsActor:
    """``Demands`` for the jobs of a cluster; outlives each of them."""

    def __init__(self, silence_s: float) -> None:
        self._demands = Demands(lambda bundles: request_resources(bundles=bundles), silence_s)
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, args=(silence_s / 6,), daemon=True).start()

    def ask(self, asker: str, bundles: Bundles) -> None:
        with self._lock:
            self._demands.ask(asker, bundles)

    def _watch(self, pause_s: float) -> None:
        while True:
            time.sleep(pause_s)
            with self._lock:
                self._demands.forget_silent()


class Demand:
    """What one job asks an autoscaler for; nothing, without one. To be closed."""

    def __init__(self) -> None:
        self._asker = uuid.uuid4().hex
        self._asked: list[dict[str, float]] = []
        self._actor: Any = None
        self._closed = threading.Event()

    def ask(self, bundles: Bundles) -> None:
        """Have nodes that these fit on together, from now on."""
        asked = [dict(each) for each in bundles]
        if asked == self._asked:
            return
        self._asked = asked
        if self._actor is None:
            self._actor = _actor()
            threading.Thread(target=self._beat, daemon=True).start()
        ray.get(self._actor.ask.remote(self._asker, asked))

    def close(self) -> None:
        """Ask for nothing any more."""
        self._closed.set()
        if self._actor is not None:
            with suppress(ray.exceptions.RayError):  # the cluster is gone
                ray.get(self._actor.ask.remote(self._asker, []))

    def _beat(self) -> None:
        while not self._closed.wait(SILENCE_S / 6):
            with suppress(ray.exceptions.RayError):
                ray.get(self._actor.ask.remote(self._asker, self._asked))


def _actor() -> Any:
    actor: Any = ray.remote(num_cpus=0)(_DemandsActor)
    named = {"name": _NAME, "namespace": _NAMESPACE, "get_if_exists": True}
    return actor.options(**named, lifetime="detached", **on_this_node()).remote(SILENCE_S)


@contextmanager
def demanded(nodes: Bundles, say: Callable[[str], None]) -> Iterator[None]:
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
        demand.ask(bundles)
        for each in bundles:
            _wait(each, say)
        yield
    finally:
        demand.close()


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
