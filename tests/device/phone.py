"""A phone for tests: a folder and the `adbd.py` process that serves it."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

QUICK = """#!/bin/sh
while [ $# -gt 2 ]; do [ "$1" = -r ] && runs=$2; shift; done
grep -q control "$1" || { echo "Failed to load the model"; exit 1; }
while [ "$runs" -gt 0 ]; do echo "model,0.002,1000,99,$((runs = runs - 1))"; done > "$2"
"""
DAEMON = Path(__file__).with_name("adbd.py")


def command_settings(folder: Path, seconds: float) -> dict[str, Any]:
    """Settings of phones that measure by a program which takes so long and says 2 ms."""
    program = folder / "mine"
    program.write_text(f"#!/bin/sh\nsleep {seconds}\necho took 2000 us\n")
    runner = {
        "kind": "command",
        "binary": str(program),
        "command_line": ["{binary}"],
        "pattern": r"took (\d+) us",
        "unit": "us",
    }
    return {"runner": runner, "blocks": 2, "warmup_runs": 0, "key": str(folder / "adbkey")}


class Adb:
    """The adb client of Android's developers, with a server and a key of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.server = f"127.0.0.1:{port}"
        more = {"HOME": str(home), "ANDROID_ADB_SERVER_PORT": str(port)}
        self._environment = {**os.environ, **more}

    def __call__(self, *arguments: str | Path) -> str:
        result = subprocess.run(
            ["adb", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env=self._environment,
        )
        return result.stdout + result.stderr


class Phone:
    """Starts and kills the daemon; the port stays the same over restarts."""

    def __init__(self, folder: Path, model: str = "A1", **faults: int | bool) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        (folder / "state").mkdir(parents=True)
        self.set("model", model)
        self.set("serial", folder.name)
        self.fail(**faults)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def tmp(self) -> Path:
        """The folder that the phone calls /data/local/tmp."""
        return self.folder / "data/local/tmp"

    def set(self, fact: str, value: str) -> None:
        (self.folder / "state" / fact).write_text(f"{value}\n")

    def log(self) -> list[str]:
        path = self.folder / "state/log"
        return path.read_text().splitlines() if path.exists() else []

    def fail(self, **faults: int | bool) -> None:
        """Sets the faults of the connections to come; none without arguments."""
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def trust(self, *public_keys: str) -> None:
        """From now on the phone asks for a key, and takes these."""
        (self.folder / "keys").write_text("".join(f"{key}\n" for key in public_keys))

    def start(self) -> Phone:
        command = [sys.executable, str(DAEMON), str(self.folder), str(self.port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=obey_modes
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def kill(self) -> None:
        """SIGKILL, as when the cable is pulled."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


def obey_modes() -> None:
    """Linux: the process, if root's, is refused what a file's mode forbids, as a phone's shell is.

    It gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH for good.
    """
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def perf_test(folder: Path) -> Path:
    """The stand-in for onnxruntime_perf_test, as a program."""
    program = folder / "onnxruntime_perf_test"
    text = Path(__file__).with_name("perf_stand_in.py").read_text()
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    return program


def quick_perf_test(folder: Path) -> Path:
    """The same, but it loads no runtime: of the control model each run takes 2 ms."""
    program = folder / "onnxruntime_perf_test"
    program.write_text(QUICK)
    program.chmod(0o755)
    return program
