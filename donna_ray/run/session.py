"""Ray for the length of a run: joined where there is a cluster, else started and stopped."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from device_farm.ending import Stopped, one_line
from device_farm.farm.joining import joining_fault
from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError

__all__ = ["RayLost", "RaySession"]

_POLL_S = 0.2
_DYING_S = 2.0  # for a killed process to be gone
_LAST_WORDS = (
    "donna: Ray must be connected to, but its raylet has ended meanwhile (it or its agent was "
    "killed, perhaps for want of memory). What is finished is kept: the same command (without "
    "--fresh) goes on from there."
)
_INLINED = 8 * 2**20  # bytes of an argument or a result; models and results of steps have less


class RayLost(BaseException):
    """The raylet of a Ray that this process started has ended.

    No error of its own kind: whoever meets it could only ask the same Ray again.
    """


class RaySession:
    """Starts at the first ``ensure``; a run that reuses everything never starts Ray.

    Attributes:
        on_join: called once the cluster is joined; what it raises ends the run.
        lost: the raylet has ended before ``close``, by itself or with its agent.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self.on_join: Callable[[], None] = lambda: None
        self._cluster = cluster
        self._ours = False
        self.lost = False
        self._closing = threading.Event()

    def ensure(self) -> None:
        """Be connected to Ray.

        Joins the cluster that RAY_ADDRESS names or that `ray start` made on this host; starts one
        otherwise, and in any case where RAY_ADDRESS is "local".

        Raises:
            DonnaError: the named cluster does not answer or has another token, or a local one is
                too small.
        """
        if ray.is_initialized():
            return
        # Workers start at nice 15 by default and starve beside any other process; a device that is
        # being timed must not.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Most processes of a run only coordinate and take no CPU; Ray warns of more than 4 a CPU.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
        # What is larger goes through the object store of this node. Where the node is lost, Ray
        # ends a process on the spot that has objects there, before it can say how to go on.
        os.environ.setdefault("RAY_max_direct_call_object_size", str(_INLINED))
        if fault := joining_fault():
            raise DonnaError(f"{fault}.")
        stopping = signal.getsignal(signal.SIGTERM)
        try:
            chatty = logging.getLogger().isEnabledFor(logging.INFO)
            level = logging.INFO if chatty else logging.ERROR
            with _last_words():
                ray.init(include_dashboard=False, log_to_driver=chatty, logging_level=level)
        except SystemExit:  # Ray's own handler of SIGTERM, until ours is back
            raise Stopped(signal.SIGTERM) from None
        except ConnectionError as error:
            raise DonnaError(
                f"The Ray cluster of RAY_ADDRESS ({os.environ.get('RAY_ADDRESS', 'ray start')}) "
                f"cannot be joined: {error}. See `ray status`, or unset RAY_ADDRESS and run "
                "`ray stop`."
            ) from None
        except Exception as error:  # such as that its own processes took too long
            raise DonnaError(
                f"Ray must start on this host, but does not: {one_line(str(error))}. See that CPUs "
                "and memory are free, then give the same command again: what is finished is kept."
            ) from error
        if callable(stopping):  # Ray's own ends the process on the spot
            signal.signal(signal.SIGTERM, stopping)
        self._ours = True
        self._closing.clear()
        self._watch()
        self._check_size()
        self.on_join()

    @staticmethod
    def joins() -> bool:
        """Whether there is a cluster that is named, as in every Ray job."""
        return os.environ.get("RAY_ADDRESS", "local") != "local"

    @property
    def is_own(self) -> bool:
        """Whether this process started the Ray that it uses."""
        return bool(_raylets())

    def close(self) -> None:
        """Leave the cluster; one that ``ensure`` started is stopped."""
        self._closing.set()
        if self._ours:
            ray.shutdown()
            self._ours = False

    def look(self) -> None:
        """See whether the node of this host is ``lost``.

        What a killed raylet's actors are asked fails before ``_watch`` sees that it has ended; and
        one whose agent was killed leaves the cluster, and takes all actors along, before it ends.
        """
        for raylet in _raylets():
            with suppress(subprocess.TimeoutExpired):
                raylet.process.wait(_DYING_S)
                self.lost = True
        if not ray.is_initialized():
            return
        with suppress(ray.exceptions.RayError, RuntimeError, OSError):
            here = ray.get_runtime_context().get_node_id()
            alive = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
            self.lost = self.lost or not alive.get(here, True)

    def _watch(self) -> None:
        """From now on the main thread gets ``RayLost`` where the raylet ends.

        Of itself Ray tells it seconds later, in many words, and the first object that is put into
        its store before that ends the process without any.
        """
        raylets = _raylets()
        if not raylets or threading.current_thread() is not threading.main_thread():
            return
        process, main = raylets[0].process, threading.get_ident()
        signal.signal(signal.SIGUSR1, self._lose)

        def watch() -> None:
            while not self._closing.wait(_POLL_S):
                if process.poll() is not None:
                    signal.pthread_kill(main, signal.SIGUSR1)
                    return

        threading.Thread(target=watch, daemon=True).start()

    def _lose(self, *_: object) -> None:
        if not self._closing.is_set():
            self.lost = True
            raise RayLost

    def _check_size(self) -> None:
        needed = self._cluster.workers * self._cluster.cpus_per_worker
        present = ray.cluster_resources().get("CPU", 0)
        if len(ray.nodes()) == 1 and needed > present and not self.joins():
            raise DonnaError(
                f"cluster.workers x cpus_per_worker must fit this machine, but needs {needed:g} of "
                f"{present:g} CPUs. Lower cluster.workers, or cluster.cpus_per_worker to a part."
            )


@contextmanager
def _last_words() -> Iterator[None]:
    """Have a process say how to go on where this one ends without a word.

    So Ray ends it whose raylet dies, by itself or with its agent, before it is connected to it.
    """
    command = ["sh", "-c", 'read -r _ || printf "%s\\n" "$1" >&2', "sh", _LAST_WORDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            with suppress(BrokenPipeError):  # it was interrupted, as this one
                process.communicate(b"\n")


def _raylets() -> list[Any]:
    """Those that this process started."""
    node: Any = ray._private.worker._global_node
    return node.all_processes.get("raylet", []) if node else []
