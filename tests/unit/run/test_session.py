"""Which Ray a run is on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
import ray

from device_farm.ending import Stopped
from donna_ray.config import ClusterConfig
from donna_ray.errors import DonnaError
from donna_ray.run.session import RaySession
from tests.ray_head import free_ports

TOKEN = "a" * 32


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


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that asks for the token `a`, as who has `b` is told."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short path, for its sockets
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--include-dashboard=false", "--num-cpus=0"]
        command += [f"--temp-dir={folder}", f"--port={port}"]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        head = subprocess.Popen(
            command,
            env={**os.environ, **token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while "asks for a token" not in joined(f"127.0.0.1:{port}", "b" * 32):
                assert head.poll() is None
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(head.pid, signal.SIGKILL)  # asked to end, it takes half a minute
            head.wait()


def joined(address: str, token: str | None) -> str:
    words = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    program = "from device_farm.farm.joining import *; print(joining_fault())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RAY_ADDRESS": address, **words},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_no_token_is_told_at_once(guarded: str) -> None:
    """As another is; Ray tries for 20 s, or for 40, and then says that it cannot connect."""
    assert "asks for a token, and this process has another or none" in joined(guarded, None)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", r"does not answer .Connection refused.: start it"),
        ("nowhere.invalid:6379", r"does not answer .*: start it"),
        ("http://127.0.0.1:8265", r"must be HOST:PORT, .*`ray job`"),
        ("head", r"must be HOST:PORT, but is head: correct it"),
        ("::1:6379", r"must be HOST:PORT, but is ::1:6379 .*: correct it"),
    ],
)
def test_a_cluster_that_does_not_answer_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(DonnaError, match=words):
        RaySession(ClusterConfig()).ensure()
