"""A Ray head of its own, on free ports of the loopback, that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_PORTS = range(20000, 32000)  # below those that Linux gives to who asks for any
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: of its GCS, as RAY_ADDRESS takes it.
        dashboard: where jobs are submitted, as RAY_ADDRESS takes it, too.
        folder: of its own files.
        environment: in which it runs, and others may.
    """

    address: str
    dashboard: str
    folder: Path
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has, nor is given by the system while they are not taken.

    Nor by another Ray, whose workers take those from 10002 to 19999.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(_PORTS, 1000):
            if len(found) == count:
                return found
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    raise AssertionError(f"of 1000 ports in {_PORTS} not {count} are free")


@contextlib.contextmanager
def ray_head(
    *words: str,
    environment: Mapping[str, str] | None = None,
    cpus: int = 2,
    gcs: int | None = None,
) -> Iterator[Head]:
    """`ray start --head` with these words more; ends with all of its processes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path is to have 107 bytes at most
    dashboard, client, agent, another = free_ports(4)
    gcs = gcs or another
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    paths = [str(ROOT), inherited.get("PYTHONPATH", "")]
    full = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        **(environment or {}),
    }
    command = [
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"),
        *(f"--port={gcs}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *words,
    ]
    log = (folder / "start.log").open("w")
    process = subprocess.Popen(command, env=full, stdout=log, stderr=log)
    head = Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", folder, full)
    try:
        _wait_until_up(process, (gcs, dashboard), folder)
        yield head
    finally:
        end(process, folder)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End a `ray start --block`, and whatever of its processes is left: they name the folder."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    for pid in _naming(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def run(head: Head, command: Sequence[str], folder: Path, seconds: float = 600) -> str:
    """The output of a command that has to succeed, on a head's cluster."""
    environment = {**head.environment, "RAY_ADDRESS": head.dashboard}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _wait_until_up(process: subprocess.Popen[bytes], ports: Sequence[int], folder: Path) -> None:
    deadline = time.monotonic() + 300
    for port in ports:
        while True:
            assert process.poll() is None, (folder / "start.log").read_text()
            assert time.monotonic() < deadline, (folder / "start.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)


def _naming(folder: Path) -> list[int]:
    """Processes that have a folder in their arguments, environment or working directory."""
    found = []
    for each in Path("/proc").iterdir():
        if not each.name.isdigit() or int(each.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes() + os.readlink(each / "cwd").encode()
            if str(folder).encode() in words:
                found.append(int(each.name))
    return found
