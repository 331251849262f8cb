"""What the tests of the farm share."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from local_farm import LocalFarm
from onnx import TensorProto, helper, numpy_helper

from device_farm import Farm
from tests.waiting import wait_for


def model_number(number: int) -> bytes:
    """A model unlike the others by one weight: y = x + number."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    weight = numpy_helper.from_array(np.full(4, number, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    opset = helper.make_opsetid("", 17)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return model.SerializeToString()


def results(asked: Sequence[Future[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of models that were submitted to a local farm."""
    return [each.result(300) for each in asked]


def row(farm: Farm | LocalFarm, device: str) -> dict[str, Any]:
    [found] = [row for row in farm.status() if row["device"] == device]
    return found


def wait_for_state(farm: Farm | LocalFarm, device: str, state: str) -> None:
    wait_for(lambda: row(farm, device)["state"] == state, farm.status)


def process_of(title: str) -> int:
    """The process of an actor of Ray, as soon as there is one and no other that ends, say."""
    deadline = time.monotonic() + 300
    while True:
        found = {pid for pid, name in descendants() if name.startswith(f"ray::{title}")}
        if len(found) == 1:
            return found.pop()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descendants() -> list[tuple[int, str]]:
    """The processes started by this one, directly or not: id and title."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_bytes().rstrip(b"\0 ").decode()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        titles[int(folder.name)] = title

    def is_mine(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_mine(parents[pid]))

    return [(pid, title) for pid, title in titles.items() if is_mine(pid)]
