"""Signals end a command, whatever its main thread waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.waiting import wait_for

HASHING = """
import hashlib, os, subprocess, sys
from device_farm.ending import run_command
def app(words):
    child = subprocess.Popen(["sleep", "100"], stdout=-3, stderr=-3)
    print(child.pid, flush=True)
    if words == ["python"]:
        while True:
            pass
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # for half an hour
run_command(app, "hash", {})
"""
FORKED = """
import hashlib, os, signal, sys, time
from device_farm.ending import run_command
def app(words):
    if not (child := os.fork()):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    time.sleep(4)
    os.kill(child, signal.SIGKILL)
run_command(app, "fork", {})
"""


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, *words], stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def is_alive(process: int) -> bool:
    """Not so of one that has ended, and for which nobody waits."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


WAITS = "hash: stops once what it waits for ends; the same signal again stops it at once.\n"


def test_call_that_never_ends_is_ended_after_seconds() -> None:
    less_patient = "import device_farm.stopping as s; s._PATIENCE_S = 5.0"
    with running("-c", less_patient + HASHING) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        wait_for_work(process.pid)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said == (
        f"{WAITS}hash: stopped at once. What it waited for did not end. What is finished is kept: "
        "give the same command again.\n"
    )
    assert 4.5 < time.monotonic() - began < 35
    wait_for(lambda: not is_alive(child))  # the system ends what was killed in its own time


def test_second_signal_ends_a_call_at_once() -> None:
    with running("-c", HASHING) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_for_work(process.pid)
        began = time.monotonic()
        for pause in (0.0, 0.1, 2.5):  # the second is the same wish
            time.sleep(pause)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "stopped at once" in said) == (130, True)
    assert time.monotonic() - began < 19


def test_call_that_ends_in_time_is_waited_for() -> None:
    with running("-c", HASHING.replace("2**31 - 1", "5_000_000")) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        wait_for_work(process.pid)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "hash: stopped. Nothing is half done" in said) == (143, True)
    os.kill(child, signal.SIGKILL)


def test_command_that_hears_a_signal_ends_in_order() -> None:
    with running("-c", HASHING, "python") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "hash: stopped. Nothing is half done" in said) == (143, True)
    os.kill(child, signal.SIGKILL)


def test_signal_of_a_fork_is_not_the_commands() -> None:
    with running("-c", FORKED) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, (130, True)), (signal.SIGKILL, (-9, False))]
)
def test_model_that_never_ends_ends_with_its_command(
    number: int, told: tuple[int, bool], tmp_path: Path
) -> None:
    for name, config in (("endless.onnx", endless()), ("farm.yaml", FARM.encode())):
        (tmp_path / name).write_bytes(config)
    words = ("bench", str(tmp_path / "endless.onnx"), "--config", str(tmp_path / "farm.yaml"))
    with running("-m", "device_farm", *words, "--device", "c") as process:
        wait_for(lambda: alone_at_work(process.pid))
        mine = alone_at_work(process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "device-farm: stopped" in said) == told
    wait_for(lambda: not any(Path(f"/proc/{each}/exe").exists() for each in mine))


def alone_at_work(command: int) -> list[int]:
    """The program that a command has run a model alone, and its fork; none until that computes."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    parents = {pid: parent(pid) for pid in pids}
    programs = [pid for pid in pids if parents[pid] == command]
    forks = [pid for pid in pids if parents[pid] in programs]
    return [*programs, *forks] if forks and all(cpu_seconds(each) > 1 for each in forks) else []


def parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


FARM = "devices:\n- {name: c, connector: onnxruntime}\n"


def wait_for_work(process: int) -> None:
    """Until it is within the call that computes."""
    enough = cpu_seconds(process) + 0.3
    while cpu_seconds(process) < enough:
        time.sleep(0.02)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def endless() -> bytes:
    """A model with a loop that adds for ever."""
    make, kind = onnx.helper, onnx.TensorProto
    body = make.make_graph(
        [
            make.make_node("Identity", ["go"], ["on"]),
            make.make_node("Add", ["value", "value"], ["more"]),
        ],
        "body",
        [
            make.make_tensor_value_info("number", kind.INT64, []),
            make.make_tensor_value_info("go", kind.BOOL, []),
            make.make_tensor_value_info("value", kind.FLOAT, [1]),
        ],
        [
            make.make_tensor_value_info("on", kind.BOOL, []),
            make.make_tensor_value_info("more", kind.FLOAT, [1]),
        ],
    )
    graph = make.make_graph(
        [make.make_node("Loop", ["", "true", "x"], ["y"], body=body)],
        "endless",
        [make.make_tensor_value_info("x", kind.FLOAT, [1])],
        [make.make_tensor_value_info("y", kind.FLOAT, [1])],
        [onnx.numpy_helper.from_array(np.array(True), "true")],
    )
    opset = [make.make_opsetid("", 17)]
    model = make.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())
