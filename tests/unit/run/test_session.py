"""Which Ray a run is on."""

from __future__ import annotations

import signal
import sys

import pytest
import ray

from device_farm.ending import Stopped
from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError
from donna_ray.run.session import RaySession


def test_a_named_cluster_is_joined_and_local_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, joins in [
        ("10.0.0.1:6379", True),
        ("ray://10.0.0.1:10001", True),
        ("local", False),
    ]:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert RaySession.joins() is joins
    monkeypatch.delenv("RAY_ADDRESS")
    assert not RaySession.joins()


def test_signal_that_ends_a_command_stays_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has a handler of its own, which exits without a word."""
    before = signal.signal(signal.SIGTERM, ours := lambda number, frame: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: None))
    monkeypatch.setattr(ray._private.worker, "_global_node", None)  # which others may have started
    monkeypatch.setattr(RaySession, "_check_size", lambda self: None)
    try:
        RaySession(ClusterConfig()).ensure()
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_while_ray_starts_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: sys.exit(signal.SIGTERM))  # as its handler does
    with pytest.raises(Stopped) as caught:
        RaySession(ClusterConfig()).ensure()
    assert caught.value.status == 143


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: object) -> None:
        raise RuntimeError("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(DonnaError, match=r"does not: The current node timed out during startup\. "):
        RaySession(ClusterConfig()).ensure()
