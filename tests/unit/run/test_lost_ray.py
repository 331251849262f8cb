"""A Ray that ends before the command: one sentence, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from donna_ray.config import RunConfig
from donna_ray.errors import DonnaError
from donna_ray.run.run import Run
from donna_ray.run.session import RaySession


@pytest.fixture
def raylet(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of Ray's, which this test does not start."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        node = SimpleNamespace(all_processes={"raylet": [SimpleNamespace(process=process)]})
        monkeypatch.setattr(ray._private.worker, "_global_node", node)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", lambda **_: None)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(RaySession, "_check_size", lambda self: None)
        yield process
        process.kill()


class _Workers:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_lost_raylet_ends_a_run_in_one_sentence(
    raylet: subprocess.Popen[bytes], config: RunConfig, tmp_path: Path
) -> None:
    workers = _Workers()

    def lose() -> None:
        with Run(config, tmp_path / "run") as run:
            run.ray.ensure()
            run.kept("workers", lambda: workers)
            _swallowing(raylet)

    with pytest.raises(DonnaError, match=r"its raylet has ended .* the same command") as caught:
        lose()
    assert "\n" not in str(caught.value)
    assert not workers.closed  # they would ask a Ray that is gone


def test_error_of_a_node_that_is_dead_is_told_as_its_loss(
    raylet: subprocess.Popen[bytes],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the agent was killed: the raylet is there for some seconds more."""

    def actor_dies() -> None:
        with Run(config, tmp_path / "run") as run:
            run.ray.ensure()
            monkeypatch.setattr(ray, "is_initialized", lambda: True)
            raise ray.exceptions.ActorDiedError

    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "here", "Alive": alive}])
    alive = True
    with pytest.raises(ray.exceptions.ActorDiedError):
        actor_dies()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    alive = False
    with pytest.raises(DonnaError, match="its raylet has ended"):
        actor_dies()


def test_error_of_a_raylet_that_has_just_ended_is_told_as_its_loss(
    raylet: subprocess.Popen[bytes], config: RunConfig, tmp_path: Path
) -> None:
    """Before the watch looks again."""

    def actor_is_away() -> None:
        with Run(config, tmp_path / "run") as run:
            run.ray.ensure()
            raylet.kill()
            raise ray.exceptions.RayError("the actor is unavailable")

    with pytest.raises(DonnaError, match="its raylet has ended"):
        actor_is_away()


def _swallowing(raylet: Any) -> None:
    """Waits as for a worker, whatever error that is lost there."""
    raylet.kill()
    while True:
        try:
            time.sleep(10)
        except Exception:
            continue


def test_raylet_that_ends_with_the_run_is_no_loss(
    raylet: subprocess.Popen[bytes],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shutdown() -> None:
        raylet.kill()
        raylet.wait()
        time.sleep(0.5)  # longer than it takes the watch to look again

    monkeypatch.setattr(ray, "shutdown", shutdown)
    with Run(config, tmp_path / "run") as run:
        run.ray.ensure()
    assert not run.ray.lost


@pytest.mark.parametrize("status", [0, 1])
def test_a_process_that_ray_ends_as_it_starts_has_last_words(status: int) -> None:
    """Ray does so in C++, by which Python has no say."""
    program = f"""
import os
from unittest import mock
from donna_ray.config import ClusterConfig
from donna_ray.run import session
with mock.patch.object(session.ray, "init", lambda **_: os._exit(1) if {status} else None):
    session.RaySession(ClusterConfig()).ensure()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RAY_ADDRESS": "local"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ("the same command (without --fresh) goes on" in done.stderr) == bool(status)
